"""The loop: keys out of the queue, one reconcile each, WORKERS at once, only while this process leads.

Not leading, the queue collects what changes; when the lease is won every StreamPair is looked at once, and what waited
counts as waiting from then on. Each is also looked at every `resync_seconds`, spread at random, so that an event that
was lost costs a bounded time.

A long queue is no trouble while it moves, and whoever takes over would have the same one. It is stuck where a
StreamPair has waited for STUCK_SECONDS and no reconcile has ended for as long; one that hangs until our own limit ends
it moves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from streamserve.operator.edge.fence import NotLeader
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ApiError, Retryable
from streamserve.operator.edge.queue import KeyedQueue
from streamserve.operator.edge.store import Change, Key, Store
from streamserve.runtime import logs
from streamserve.runtime.tasks import Tasks

WORKERS: Final = 16
RESYNC_SECONDS: Final = 600.0
RECONCILE_SECONDS: Final = 120.0
STUCK_SECONDS: Final = 180.0
_IDLE_SECONDS: Final = 5.0
_log = logs.get(__name__)


class Controller:
    """`reconcile` returns the seconds until it wants to run again, or None."""

    def __init__(
        self,
        reconcile: Callable[[Key], Awaitable[float | None]],
        store: Store,
        leads: asyncio.Event,
        *,
        metrics: OperatorMetrics,
        clock: Callable[[], float],
        rng: Random,
        term: Callable[[], int] = lambda: 0,
        resync_seconds: float = RESYNC_SECONDS,
    ) -> None:
        self._reconcile = reconcile
        self._store = store
        self._leads = leads
        self._term = term
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._resync_seconds = resync_seconds
        self._queue: KeyedQueue[Key] = KeyedQueue(rng)
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(WORKERS)
        self._tasks = Tasks("reconcile")
        self._turned_at = self._moved_at = clock()
        self._led: int | None = None
        metrics.follow(metrics.queue_depth, lambda: self._queue.depth(clock()) if self._works else 0)
        metrics.follow(metrics.queue_age, self._age_seconds)

    def changed(self, change: Change) -> None:
        """Something that concerns this StreamPair is news."""
        if change.new_spec:
            self._queue.fresh(change.key, self._clock())
        else:
            self._queue.add(change.key, self._clock())
        self._wake.set()

    def ask(self, key: Key) -> None:
        self.changed(Change(key))

    def trouble(self) -> str | None:
        """Why this loop does not live; None while it does. Who stands by turns too, and has nothing to be late with."""
        now = self._clock()
        if now - self._turned_at > STUCK_SECONDS:
            return f"the queue has not been looked at for {now - self._turned_at:.0f} s"
        if (still := min(self._age_seconds(), now - self._moved_at)) > STUCK_SECONDS:
            return f"a StreamPair waits, and no reconcile has ended for {still:.0f} s"
        return None

    async def run(self) -> None:
        """Until cancelled."""
        resynced = self._clock()
        while True:
            self._turned_at = self._clock()
            if not self._leads.is_set():
                self._led = None
                self._metrics.missing_lanes.clear()  # the new leader's to tell from now on
                await _at_most(_IDLE_SECONDS, self._leads)
                continue
            if self._led != self._term():
                self._led, resynced = self._term(), self._clock()
                self._queue.restart(self._clock())
                self._look_at_all(within_seconds=0.0)
            elif self._clock() - resynced > self._resync_seconds:
                resynced = self._clock()
                self._look_at_all(within_seconds=self._resync_seconds / 2)
            await self._turn()

    async def stop(self, timeout_seconds: float) -> None:
        """After `run` was cancelled: let what is under way finish, at most this long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                for _ in range(WORKERS):
                    await self._slots.acquire()
        await self._tasks.stop()

    @property
    def _works(self) -> bool:
        """Whether this process leads and the loop has seen it."""
        return self._led is not None and self._leads.is_set()

    def _age_seconds(self) -> float:
        return self._queue.oldest_age_seconds(self._clock()) if self._works else 0.0

    def _look_at_all(self, *, within_seconds: float) -> None:
        for key in self._store.pairs():
            self._queue.add(key, self._clock(), after_seconds=self._rng.uniform(0.0, within_seconds))

    async def _turn(self) -> None:
        """Start what is due and has a place, or wait for either."""
        self._wake.clear()
        if self._slots.locked():
            wait: float | None = None
        elif (key := self._queue.take(self._clock())) is not None:
            await self._slots.acquire()
            self._tasks.spawn("/".join(key), self._one(key))
            return
        else:
            wait = self._queue.next_due_seconds(self._clock())
        await _at_most(min(_IDLE_SECONDS if wait is None else wait, _IDLE_SECONDS), self._wake)

    async def _one(self, key: Key) -> None:
        began, result = self._clock(), "ok"
        try:
            async with asyncio.timeout(RECONCILE_SECONDS):
                again = await self._reconcile(key)
            self._queue.done(key, self._clock(), again_seconds=again)
            if not self._store.has(key):
                self._queue.forget(key)
        except NotLeader:
            # Whoever leads next looks at everything; this process, should the lease be back before the loop saw it go.
            result = "not_leading"
            self._queue.failed(key, self._clock())
        except (ApiError, TimeoutError) as error:
            result = type(error).__name__
            least = error.retry_after_seconds if isinstance(error, ApiError) else 0.0
            wait = self._queue.failed(key, self._clock(), at_least_seconds=least)
            level = _log.info if isinstance(error, Retryable) else _log.warning
            level("%s: tried again in %.1f s: %s", "/".join(key), wait, error or "no end in time")
        except Exception:
            result = "defect"
            wait = self._queue.failed(key, self._clock())
            _log.exception("%s: a defect of ours; tried again in %.1f s", "/".join(key), wait)
        finally:
            if result != TimeoutError.__name__:
                self._moved_at = self._clock()
            self._slots.release()
            self._wake.set()
            self._metrics.reconcile_seconds.labels(result).observe(self._clock() - began)


async def _at_most(seconds: float, event: asyncio.Event) -> None:
    """Not by `asyncio.wait_for`: in Python 3.11 it loses a cancellation that comes with the event, and a loop that is
    woken hundreds of times a second would hardly ever end."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
