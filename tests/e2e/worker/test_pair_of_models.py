"""Which pairs of models this version of vLLM can hand over is known before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys

from tiny_pair import DRAFT, TARGET

from streamserve.worker.pipeserve import compat


def test_a_draft_whose_kv_is_shaped_unlike_the_targets_is_refused_only_where_it_could_not_be_handed_over() -> None:
    flags = ["--role", "decode", "--engine", "Vllm", "--model", str(TARGET), "--method", "DraftModel"]
    asked = [[*flags, "--max-depth", "6", "--draft", str(draft)] for draft in (TARGET, DRAFT)]
    done = subprocess.run(
        [sys.executable, "-m", "streamserve.worker.pipeserve.vllm_check"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    alike, unlike = json.loads(done.stdout)["refused"]
    assert alike is None
    if compat.version() == "0.26.0":
        assert "take a draft of the target's shape, no draft model, or vLLM 0.32.0" in unlike
    else:
        assert unlike is None
