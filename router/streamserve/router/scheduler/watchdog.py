"""One timer for all the waits of a request: its deadline, a worker that says nothing, a client that does not read.

A worker that says nothing is given up only once it has had its time since it last had an excuse: until then a request
of ours could only wait inside it.

The next limit is set before every wait, thousands of times for a long stream, so setting it touches no timer: the
timer that runs looks, when it fires, whether a limit has passed, and else arms itself for the nearest one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Final, Self

LOOK_AGAIN_SECONDS: Final = 1.0


class Cause(Enum):
    DEADLINE = "deadline"
    STALL = "stall"
    SLOW_CONSUMER = "slow consumer"


class Expired(Exception):
    """A limit passed while the task waited inside `with watchdog`."""

    def __init__(self, cause: Cause, waited_seconds: float) -> None:
        super().__init__(cause.value)
        self.cause = cause
        self.waited_seconds = waited_seconds


class Watchdog:
    """Interrupts the task that entered it with Expired. Times are of the loop's clock.

    `excused_at`: the last moment at which a worker had a reason to say nothing, -inf where there was none."""

    __slots__ = (
        "_cancelling",
        "_cause",
        "_deadline",
        "_excused_at",
        "_excused_to",
        "_expired",
        "_handle",
        "_limit",
        "_loop",
        "_since",
        "_task",
    )

    def __init__(self, deadline_seconds: float, excused_at: Callable[[], float] = lambda: -math.inf) -> None:
        self._excused_at = excused_at
        self._excused_to = -math.inf
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline_seconds
        self._limit = deadline_seconds
        self._since = self._loop.time()
        self._cause = Cause.DEADLINE
        self._expired: Expired | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def expect(self, cause: Cause, within_seconds: float) -> None:
        """The wait that begins now may take this long (and not past the deadline)."""
        self._since = self._loop.time()
        self._cause = cause
        limit = self._since + within_seconds
        # A limit that comes nearer than the running timer would be noticed too late.
        if limit < self._limit and self._handle is not None and limit < self._handle.when():
            self._handle.cancel()
            self._handle = self._loop.call_at(limit, self._look)
        self._limit = limit

    def only_deadline(self) -> None:
        """The wait that begins now may take until the deadline."""
        self._cause, self._limit = Cause.DEADLINE, self._deadline

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._handle = self._loop.call_at(min(self._limit, self._deadline), self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._expired is None or self._task is None:
            return
        ours = self._task.uncancel() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise self._expired from None

    def _look(self) -> None:
        now = self._loop.time()
        excused = self._since == self._excused_to
        if self._cause is Cause.STALL and (self._limit <= now or excused) and now < self._deadline:
            excused = self._excuse() or excused
        if now < min(self._limit, self._deadline):
            # An excuse is seen only while it holds, so one who had one is looked at more often.
            at = min(self._limit, self._deadline, now + LOOK_AGAIN_SECONDS if excused else math.inf)
            self._handle = self._loop.call_at(at, self._look)
            return
        self._handle = None
        cause = Cause.DEADLINE if now >= self._deadline else self._cause
        self._expired = Expired(cause, now - self._since)
        assert self._task is not None
        self._task.cancel()

    def _excuse(self) -> bool:
        """Let the wait count from the worker's last excuse on, if it has had one since."""
        excused_at = self._excused_at()
        if excused_at <= self._since:
            return False
        self._limit += excused_at - self._since
        self._since = self._excused_to = excused_at
        return True
