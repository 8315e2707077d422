"""`make bench` runs the three parts of the benchmark, the long one that can be cut off and resumed first."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

RUNS = {
    "by itself, all three": ([], ["run", "router_cpu", "first_token"]),
    "to see whether they work, all three": (
        ["ARGS=--quick"],
        ["run --quick", "router_cpu --quick", "first_token --quick"],
    ),
    "in slices of the path, which the others know nothing of": (
        ["ARGS=--slice-minutes 25 --quick"],
        ["run --slice-minutes 25 --quick", "router_cpu --quick", "first_token --quick"],
    ),
    "to see what is left of the path, nothing is run": (["ARGS=--list"], ["run --list"]),
    "to report what is finished, nothing is run": (["ARGS=--report"], ["run --report"]),
    "one part with words of its own": (["BENCH=first_token", "ARGS=--requests 9"], ["first_token --requests 9"]),
    "what is left without the path": (["BENCH=router_cpu first_token"], ["router_cpu", "first_token"]),
}


def commands(root: Path, words: list[str]) -> list[str]:
    """The scripts with their words, each only when the one before it has ended well. Nothing is run."""
    # The tests themselves are run by make, whose variables would go on to this one.
    inherited = ("ARGS", "BENCH", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    environment = {name: value for name, value in os.environ.items() if name not in inherited}
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "bench", *words],
        cwd=root,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    first, *then = re.split(r"\s+&&\s+", done.stdout.replace("\\\n", " ").splitlines()[-1])
    assert first.startswith("export HF_HUB_OFFLINE=1")
    return [" ".join(command.split()).removeprefix(".venv/bin/python bench/").replace(".py", "", 1) for command in then]


@pytest.mark.parametrize(("words", "want"), RUNS.values(), ids=RUNS.keys())
def test_make_bench_runs(root: Path, words: list[str], want: list[str]) -> None:
    assert commands(root, words) == want
    assert all((root / "bench" / f"{name.split()[0]}.py").exists() for name in want)
