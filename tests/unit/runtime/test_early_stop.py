"""A program that is told to stop while it imports ends at once, also as the first process of a container."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = ("router", "worker", "operator")

# As the first process of a container: what it does not handle does not reach it. A namespace of its own would want
# rights that not everybody has, so it is asked what it handles.
STARTS = """
import importlib, signal, sys

class Slow:
    def find_spec(self, name, path=None, target=None):
        ours = name.startswith("streamserve.") and name.count(".") > 1
        if ours and not name.endswith((".early_stop", ".__main__")):
            print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
            signal.pause()

import streamserve.runtime
sys.meta_path.insert(0, Slow())
importlib.import_module("streamserve.{program}.__main__")
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_still_imports_handles_sigterm(program: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS.replace("{program}", program)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        seen = child.stdout.readline().strip()
        while seen == "" and child.poll() is None:
            seen = child.stdout.readline().strip()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 128 + signal.SIGTERM
    assert seen == "False"
