"""Whether this process may write: until a moment on a clock that no stop of the process holds up.

    until = start of the last renewal that succeeded + renew_deadline        (less than the lease's duration)

Others take the Lease no earlier than its duration after they saw the renewal, which is later than its start, so two
processes never may write at once: a leader that was stopped past its lease finds its fence down before its next write.
The fence is looked at when the connection for a write is in hand (`api.py`), and a write in flight ends with it, which
a renewal meanwhile puts off (`while_up`): a write may take longer than one renewal lasts. What remains is a stop of the
process between that look and the system call, some microseconds, in which a write that was decided rightly arrives
late. It repeats a decision of then, with uid preconditions where it deletes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable


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
        self._under_way: set[asyncio.Timeout] = set()
        self.term = 0
        """How often it has been raised from down: what was known in an earlier term may have been overtaken since."""

    def now(self) -> float:
        return self._clock()

    def raise_until(self, moment: float) -> None:
        if not self.is_up:
            # What is of an earlier term, and only has not been told of its end yet, does not live on in this one.
            self.lower()
            self.term += 1
        self._until = max(self._until, moment)
        self._reschedule()

    def lower(self) -> None:
        self._until = float("-inf")
        self._reschedule()
        self._under_way.clear()

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

    @contextlib.asynccontextmanager
    async def while_up(self) -> AsyncIterator[None]:
        """For a write: cancelled when the fence falls, at once where it is lowered. Raises NotLeader."""
        self.check()
        try:
            async with asyncio.timeout_at(self._falls_at()) as limit:
                self._under_way.add(limit)
                try:
                    yield
                finally:
                    self._under_way.discard(limit)
        except TimeoutError as error:
            if limit.expired():
                raise NotLeader("the lease was lost amid the write") from error
            raise

    def _falls_at(self) -> float:
        """On the event loop's clock."""
        return asyncio.get_running_loop().time() + self.left_seconds

    def _reschedule(self) -> None:
        for limit in self._under_way:
            if not limit.expired():
                limit.reschedule(self._falls_at())
