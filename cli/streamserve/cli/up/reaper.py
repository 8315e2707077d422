"""The last resort: when `up` is gone, nothing that it started may stay.

`up` holds our stdin and writes a line per process group, `+PGID` when one starts and `-PGID` when it is empty. The end
of the stream means that `up` is gone, kill -9 included; then every group left gets SIGTERM, and SIGKILL after
GRACE_SECONDS. Parent-death signals reach only our own children; a vLLM engine core is a grandchild.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Final

GRACE_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.05


def main() -> int:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        sign, number = line[:1], line[1:].strip()
        if not number.isdigit():
            continue
        if sign == "+":
            groups.add(int(number))
        else:
            groups.discard(int(number))
    end(groups)
    return 0


def end(groups: set[int]) -> None:
    """Ask, wait, kill."""
    deadline = time.monotonic() + GRACE_SECONDS
    for group in groups:
        signal_group(group, signal.SIGTERM)
    while time.monotonic() < deadline and any(signal_group(group, 0) for group in groups):
        time.sleep(_POLL_SECONDS)
    for group in groups:
        signal_group(group, signal.SIGKILL)


def signal_group(group: int, signum: int) -> bool:
    """False when the group has no member left."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main())
