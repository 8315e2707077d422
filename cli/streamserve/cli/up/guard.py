"""Run a program that dies with us: `python -m streamserve.cli.up.guard --parent PID -- PROGRAM ARG…`

For programs that know no --die-with-parent, such as redis-server. The kernel keeps a parent-death signal across exec
of an ordinary binary; a parent that died before the call is noticed by its changed id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def main() -> int:
    try:
        option, parent, dashes, *command = sys.argv[1:]
        expected = int(parent)
    except ValueError:
        option = ""
    if option != "--parent" or dashes != "--" or not command:
        print("usage: guard --parent PID -- PROGRAM ARG…", file=sys.stderr)
        return 2
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != expected:
        return 1
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main())
