"""`make demo` on simulated engines: the same prompts, edits, table, checks and last line, in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[3] / "hack" / "demo.py"
COLUMNS = ["workload", "requests", "TTFT", "ms", "TPOT", "ms", "tokens", "accepted/draft", "depths", "lanes"]


def test_the_demo_keeps_its_promises_and_ends_with_its_figures() -> None:
    command = [sys.executable, str(DEMO), "--engine", "Simulator"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    head, *rows, last = done.stdout.splitlines()
    assert head.split() == COLUMNS
    assert [row.split()[:2] for row in rows[:4]] == [[name, "6"] for name in ("gsm8k", "humaneval", "alpaca", "sum")]
    result = json.loads(last)
    assert (result["requests_ok"], result["requests_failed"], result["lanes_used"]) == (24, 0, 2)
    assert result["kv_bytes"] == result["kv_bytes_expected"] > 0
    assert 0 < result["config_ack_ms_max"] <= 2_000
    moved = [int(row.split()[1].replace(",", "")) for row in rows[4:]]
    assert len(moved) == 2 and sum(moved) == result["kv_bytes"]
    told = done.stderr
    assert "24 of 24 done" in told
    assert told.index("after 6 requests: depth 0..0") < told.index("after 14 requests: depth 1..6")
    assert "processes ended, 0 left" in told
