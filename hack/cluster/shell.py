"""Commands and long-running programs of the cluster. A program is known by its pid and its start time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

CALL_SECONDS: Final = 120.0
STOP_SECONDS: Final = 5.0


class Failed(Exception):
    """The cluster cannot go on; the message says why and what to do."""


def say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


def call(*command: str, given: str | None = None, seconds: float = CALL_SECONDS) -> str:
    """What it printed. Raises Failed with the end of what it complained of."""
    try:
        done = subprocess.run(command, input=given, check=False, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(command[:4])}: {error}") from None
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:6])} failed: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done.stdout


def attempt(*command: str, seconds: float = 30.0) -> str:
    """What it printed; nothing where it failed, which does not matter here."""
    try:
        return call(*command, seconds=seconds)
    except Failed:
        return ""


def until(done: Callable[[], object], what: str, seconds: float, hint: str = "") -> None:
    """Look every 0.2 s. Raises Failed when the time is over."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:.0f} s{f'; {hint}' if hint else ''}")
        time.sleep(0.2)


def start(name: Path, command: Sequence[str], cwd: Path | None = None) -> None:
    """In the background, for longer than this process lives. Log in NAME.log, pid and start time in NAME.pid."""
    if is_running(name):
        return
    with name.with_suffix(".log").open("ab") as log:
        child = subprocess.Popen(
            list(command), cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    name.with_suffix(".pid").write_text(f"{child.pid} {started(child.pid)}")


def is_running(name: Path) -> bool:
    return _pid(name) is not None


def stop(*names: Path) -> None:
    """TERM to all, then KILL to what is left of each after STOP_SECONDS."""
    for name in names:
        _signal(name, signal.SIGTERM)
    for name in names:
        end = time.monotonic() + STOP_SECONDS
        while is_running(name) and time.monotonic() < end:
            time.sleep(0.05)
        _signal(name, signal.SIGKILL)
        name.with_suffix(".pid").unlink(missing_ok=True)


def _signal(name: Path, number: signal.Signals) -> None:
    if (pid := _pid(name)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _pid(name: Path) -> int | None:
    """Of the program that was started under this name, while it runs."""
    try:
        pid, began = name.with_suffix(".pid").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if started(int(pid)) == began else None


def started(pid: int) -> str:
    """Clock ticks since boot; empty for a process that is none, or only waits to be reaped."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]
