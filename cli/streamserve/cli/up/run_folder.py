"""The folder of one run, `streamserve-up-…` in the machine's folder for temporary files: who has it, and when it goes.

`up.pid` in it says which process has it, by id and start time, so that a process id that was given again is no
mistake; the file is touched while `up` runs. A folder is a dead one's when that process is gone and nobody has touched
the file for STALE_SECONDS; the next `up` of the same user removes it, with the logs that a failure has left.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import psutil

PREFIX: Final = "streamserve-up-"
STALE_SECONDS: Final = 3_600.0
PARTS: Final = ("config", "fleet", "ready", "logs", "tmp")
_PID_FILE: Final = "up.pid"


def create() -> Path:
    """A new one, ours."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    for name in PARTS:
        (folder / name).mkdir()
    owner = {"pid": os.getpid(), "started": _started(os.getpid()) or 0}
    (folder / _PID_FILE).write_text(json.dumps(owner) + "\n")
    return folder


def touch(folder: Path) -> None:
    """Say that it is in use."""
    try:
        os.utime(folder / _PID_FILE)
    except OSError:
        return


def remove(folder: Path, *, keep_logs: bool) -> None:
    if not keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for name in PARTS:
        if name != "logs":
            shutil.rmtree(folder / name, ignore_errors=True)


def remove_dead(root: Path | None = None) -> list[Path]:
    """Remove the folders of dead runs; returns them."""
    dead = [folder for folder in (root or Path(tempfile.gettempdir())).glob(f"{PREFIX}*") if _is_dead(folder)]
    for folder in dead:
        shutil.rmtree(folder, ignore_errors=True)
    return dead


def _is_dead(folder: Path) -> bool:
    """False when in doubt."""
    try:
        status = (folder / _PID_FILE).lstat()
        owner = json.loads((folder / _PID_FILE).read_bytes())
        pid, started = int(owner["pid"]), int(owner["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if folder.is_symlink() or status.st_uid != os.getuid() or time.time() - status.st_mtime < STALE_SECONDS:
        return False
    return _started(pid) != started


def _started(pid: int) -> int | None:
    """When that process began, in a unit of the system's own; None when there is none."""
    if sys.platform.startswith("linux"):
        try:
            # Ticks since the boot, which a set clock does not change; the name before them may hold spaces.
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        except (OSError, ValueError, IndexError):
            return None
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
