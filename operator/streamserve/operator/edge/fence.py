"""Whether this process may write: until a moment on a clock that no stop of the process holds up.

    until = start of the last renewal that succeeded + renew_deadline        (less than the lease's duration)

Others take the Lease no earlier than its duration after they saw the renewal, which is later than its start, so two
processes never may write at once: a leader that was stopped past its lease finds its fence down before its next write.
The fence is looked at when the connection for a write is in hand (`api.py`), and a write in flight ends with it; what
remains is a stop of the process between that look and the system call, some microseconds, in which a write that
was decided rightly arrives late. It repeats a decision of then, with uid preconditions where it deletes.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def boot_clock() -> float:
    """Seconds since boot, time asleep included: it goes on through SIGSTOP and through a suspended machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NotLeader(Exception):
    """A write was asked for by a process that may not write (any more)."""


class Fence:
    """Down until it is raised."""

    def __init__(self, clock: Callable[[], float] = boot_clock) -> None:
        self._clock = clock
        self._until = float("-inf")
        self.term = 0
        """How often it has been raised from down: what was known in an earlier term may have been overtaken since."""

    def now(self) -> float:
        return self._clock()

    def raise_until(self, moment: float) -> None:
        self.term += not self.is_up
        self._until = max(self._until, moment)

    def lower(self) -> None:
        self._until = float("-inf")

    @property
    def left_seconds(self) -> float:
        return self._until - self._clock()

    @property
    def is_up(self) -> bool:
        return self.left_seconds > 0.0

    def check(self) -> None:
        """Raises NotLeader when this process may not write."""
        if not self.is_up:
            raise NotLeader("this process does not hold the lease")
