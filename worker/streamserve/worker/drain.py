"""Leaving without hurting anyone: serving -> draining -> drained, never back.

draining  from the first ask (Drain, SIGTERM): new work is refused as WorkerLost, reason DRAINING, so that routers
          try elsewhere; what runs goes on
drained   no request runs, and a prefill worker holds no KV that a decode worker may still come for (or it came
          for nothing within HELD_SECONDS of the last request)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final

from streamserve.contract.errors import WorkerLost

HELD_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.05


class DrainState(Enum):
    SERVING = "serving"
    DRAINING = "draining"
    DRAINED = "drained"


def next_state(
    state: DrainState, *, asked: bool, running_requests: int, held_blocks: int, quiet_seconds: float
) -> DrainState:
    """The state after looking once. `quiet_seconds`: how long no request has run."""
    if state is DrainState.DRAINED or (state is DrainState.SERVING and not asked):
        return state
    if running_requests or (held_blocks and quiet_seconds < HELD_SECONDS):
        return DrainState.DRAINING
    return DrainState.DRAINED


class Drain:
    """The worker's one drain. `running` counts requests, `held` KV blocks that wait for a pull."""

    def __init__(
        self,
        *,
        running: Callable[[], int],
        held: Callable[[], int],
        clock: Callable[[], float],
        on_begin: Callable[[], None],
    ) -> None:
        self._running = running
        self._held = held
        self._clock = clock
        self._on_begin = on_begin
        self._busy_at = clock()
        self._seen_running = True
        self.state = DrainState.SERVING

    @property
    def draining(self) -> bool:
        return self.state is not DrainState.SERVING

    def begin(self) -> None:
        if not self.draining:
            self.state = DrainState.DRAINING
            self._on_begin()

    def refuse_if_draining(self) -> None:
        if self.draining:
            raise WorkerLost("this worker drains and takes no new requests; use another", reason="DRAINING")

    async def wait(self, timeout_seconds: float) -> int:
        """Drain, until it is drained or the time is over. Returns how many requests still run, at least 1 while KV is
        held that a decode worker may come for: its request is not over."""
        self.begin()
        end = self._clock() + timeout_seconds
        while True:
            now, running = self._clock(), self._running()
            if running or self._seen_running:
                # What ran at the last look may have ended only now. Calls that follow each other are one quiet time.
                self._busy_at = now
            self._seen_running = running > 0
            self.state = next_state(
                self.state,
                asked=True,
                running_requests=running,
                held_blocks=self._held(),
                quiet_seconds=now - self._busy_at,
            )
            if self.state is DrainState.DRAINED:
                return running
            if now >= end:
                return max(running, 1)
            await asyncio.sleep(min(_POLL_SECONDS, max(end - now, 0.0)))
