"""Samples counted for stages. (Sampling a process takes rights that not everybody who runs tests has.)"""

import subprocess
import sys
from pathlib import Path

import pytest
from benchkit import cpu_profile
from benchkit.results import BenchError

STAGES = {"reading": ("* kept/store.py",), "deciding": ("decide operator/decide.py", "pod builders/pods.py")}
RAW = {
    "what a stage calls is its own": (
        "run (main.py:1);decide (operator/decide.py:9);dumps (json/__init__.py:3) 4",
        "deciding",
    ),
    "the deepest stage has it": (
        "decide (operator/decide.py:9);read (kept/store.py:2);loads (json/__init__.py:3) 4",
        "reading",
    ),
    "another function of that file is none": ("run (main.py:1);other (operator/decide.py:9) 4", cpu_profile.THE_REST),
    "a name that only begins so is none": ("pods (builders/pods.py:2) 4", cpu_profile.THE_REST),
    "a thread of no stage": ("_worker (concurrent/futures/thread.py:8) 4", cpu_profile.THE_REST),
}


@pytest.mark.parametrize("name", RAW)
def test_a_sample_belongs_to_one_stage(name: str) -> None:
    raw, stage = RAW[name]
    assert cpu_profile.shares(raw, STAGES) == {stage: 1.0}


def test_shares_add_up_the_largest_first() -> None:
    raw = "\n".join(line for line, _ in list(RAW.values())[:3]) + "\nread (kept/store.py:1) 8\n"
    assert cpu_profile.shares(raw, STAGES) == {"reading": 0.6, "deciding": 0.2, cpu_profile.THE_REST: 0.2}
    assert cpu_profile.shares("", STAGES) == {}


def test_a_process_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with pytest.raises(BenchError, match="py-spy has written nothing"):
        cpu_profile.Profile(gone.pid, tmp_path).stop()
