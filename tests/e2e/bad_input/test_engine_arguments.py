"""vLLM is asked about its arguments without an engine: what it says about each, in one process for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[3] / "examples" / "models"

# Arguments, and what is said about them; "" where vLLM takes them.
CASES: dict[str, tuple[dict[str, str], str]] = {
    "those of the example": ({"max-model-len": "2048", "max-num-seqs": "16"}, ""),
    "a misspelt flag": ({"max-model-lne": "2048"}, "no engine argument max-model-lne; did you mean max-model-len?"),
    "no number": ({"max-model-len": "long"}, "--max-model-len: invalid human_readable_int_or_auto value: 'long'"),
    "a choice that there is not": ({"dtype": "floaty"}, "argument --dtype: invalid choice: 'floaty' (choose from"),
    "a value out of bounds": ({"max-num-seqs": "0"}, "max-num-seqs is 0: input should be greater than or equal to 1"),
    "a longer context than the model has": ({"max-model-len": "99999"}, "max_model_len (99999) is greater than the"),
    "values that do not go together": ({"max-num-batched-tokens": "4"}, "must be greater than or equal to max_num_s"),
    "a switch with a value": ({"enable-prefix-caching": "maybe"}, "is a switch; write true or false, not 'maybe'"),
    "JSON that is none": ({"compilation-config": "{bad"}, "--compilation-config"),
    "a flag that only prints": ({"help": "true"}, "vLLM has no engine argument help"),
    "one key of a JSON flag": ({"compilation-config.use_inductor_graph_partition": "false"}, ""),
    "keys of one JSON flag, one inside another": (
        {"compilation-config.mode": "0", "compilation-config.pass_config.fuse_norm_quant": "false"},
        "",
    ),
    "a list as a key of a JSON flag": ({"compilation-config.custom_ops+": "none,+rms_norm"}, ""),
    "a key that the JSON flag has not": ({"compilation-config.nope": "1"}, "--compilation-config"),
    "a key of a flag that is no JSON": ({"max-num-seqs.more": "1"}, "argument --max-num-seqs: invalid int value"),
    "a list": ({"cudagraph-capture-sizes": "1 2 4"}, ""),
    "a list of one": ({"cudagraph-capture-sizes": "4"}, ""),
    "an empty list": ({"cudagraph-capture-sizes": " "}, "--cudagraph-capture-sizes: expected at least one argument"),
    "a list with a word in it": ({"cudagraph-capture-sizes": "1 two"}, "capture-sizes: invalid int value: 'two'"),
    "a flag that is ours": ({"speculative-config": "{}"}, "is set by StreamServe: remove it; set spec.speculation"),
    "one key of a flag that is ours": ({"kv-transfer-config.kv_role": "kv_both"}, "is set by StreamServe: remove it"),
    "the one data parallel rank that a lane has": ({"data-parallel-size": "1"}, ""),
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """Case → what is said."""
    draft = ["--method", "DraftModel", "--max-depth", "6", "--draft", str(MODELS / "tiny-draft")]
    model = ["--engine", "Vllm", "--model", str(MODELS / "tiny-target"), *draft]
    asked = [
        ["--role", "decode" if number % 2 else "prefill", *model, "--engine-args", json.dumps(arguments)]
        for number, (arguments, _) in enumerate(CASES.values())
    ]
    done = subprocess.run(
        [sys.executable, "-m", "streamserve.worker.pipeserve.vllm_check"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(CASES, (said or "" for said in json.loads(done.stdout)["refused"]), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_vllm_says_on_one_line_what_it_does_not_take(name: str, answers: dict[str, str]) -> None:
    said = answers[name]
    assert CASES[name][1] in said
    assert bool(said) == bool(CASES[name][1]), said
    assert "\n" not in said


def test_settings_that_cannot_be_read_are_no_answer() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamserve.worker.pipeserve.vllm_check"],
        input="not JSON",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
    assert done.stdout == ""
