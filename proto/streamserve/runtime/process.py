"""A process that starts, stops on SIGINT or SIGTERM, and never outlives the parent that wanted it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import uvloop

from streamserve.runtime.errors import SetupError

_PR_SET_PDEATHSIG: Final = 1


def run(main: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    """Run `main` on uvloop until it returns its exit status. SIGINT and SIGTERM set the event it is given.

    A SetupError is printed as one line and gives its status: 2, or 3 when another start would end the same way.
    """

    async def body() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stop.set)
        return await main(stop)

    try:
        return uvloop.run(body())
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status


def die_with_parent(signum: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for `signum` when the parent dies (Linux; elsewhere nothing). Call first thing.

    The setting is per thread that forked us and survives exec. A parent that died before this call is noticed by
    the changed parent id.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if os.getppid() != parent or parent == 1:
        os.kill(os.getpid(), signum)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` so that a reader sees the old bytes or the new ones, never half."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
