"""Where a process's CPU time goes, as py-spy saw it: samples of its Python stacks, each counted for one stage.

A sample belongs to the stage whose frame lies deepest in it, so what a stage calls is its own unless another stage
is named there. Frames are matched as `function end-of-the-file's-path`, `*` for any function. Samples of other threads,
and those of no stage, are `the rest`.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchkit.results import BenchError

RATE: Final = 200
THE_REST: Final = "the rest"


class Profile:
    """Of one running process, from now until `stop`, or until it ends."""

    def __init__(self, pid: int, directory: Path) -> None:
        program = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
        if program is None:
            raise BenchError("py-spy is missing; make env installs it")
        self._output = directory / "profile.raw"
        command = [program, "record", "--pid", str(pid), "--format", "raw", "--rate", str(RATE), "--nonblocking"]
        self._process = subprocess.Popen(
            [*command, "--output", str(self._output)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def stop(self) -> str:
        """The stacks, one a line, with how often each was seen. Raises BenchError."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            _, said = self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise BenchError("py-spy does not end") from None
        if not self._output.exists():
            raise BenchError(f"py-spy has written nothing: {said.strip()[-500:]}")
        return self._output.read_text()


def shares(raw: str, stages: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """The part of each stage, largest first; they add up to 1. Empty where there is no sample."""
    counts: dict[str, int] = {}
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        stage = _stage(stack.split(";"), stages)
        counts[stage] = counts.get(stage, 0) + int(count)
    total = sum(counts.values())
    return {stage: round(count / total, 3) for stage, count in sorted(counts.items(), key=lambda item: -item[1])}


def _stage(frames: list[str], stages: Mapping[str, tuple[str, ...]]) -> str:
    for frame in reversed(frames):
        where = frame.rpartition(":")[0]
        for stage, patterns in stages.items():
            for pattern in patterns:
                function, _, path = pattern.partition(" ")
                if where.endswith(path) and (function == "*" or where.startswith(f"{function} (")):
                    return stage
    return THE_REST
