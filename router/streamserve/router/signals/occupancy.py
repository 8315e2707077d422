"""Until when a request may have had to wait inside a worker's engine, through no fault of the worker.

A router sends a little more than an engine runs at once, answers grow longer than was expected, and an engine without
free KV blocks puts back what it had begun. Such a request hears nothing for as long as those before it take. That is no
stall while two things hold: there is no room for it, and the engine works. Both are seen from outside:

    no room     every place is taken, or free KV blocks are fewer than the request takes; of a prefill worker: prompt
                tokens wait
    it works    a figure of its signals that only the engine's steps move has changed, or an answer went on

The epoch and acknowledgements of signals are the worker process' own, and go on when its engine hangs.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Final

from streamserve.contract.signals import Role, WorkerSignals
from streamserve.router.flowguard.view import NEVER, KvGeometry

# The figures of an engine that works change with nearly every value that it publishes.
MOVES_SECONDS: Final = 1.0
_MOVED_BY_STEPS: Final = attrgetter(
    "running_requests",
    "waiting_prompt_tokens",
    "kv_blocks_used",
    "prefill_tokens_per_second",
    "step_base_seconds",
    "step_per_request_seconds",
    "mean_emitted_tokens_per_step",
    "drafted_tokens",
    "accepted_tokens",
)


class Occupancy:
    """What the signals of one start of a worker have shown so far. Times are the caller's, in seconds."""

    def __init__(self) -> None:
        self._steps: object = None
        self._moved_at = NEVER
        self._taken_at = NEVER

    def saw(self, signals: WorkerSignals, now: float) -> None:
        steps = _MOVED_BY_STEPS(signals)
        if steps != self._steps:
            self._steps, self._moved_at = steps, now
        if _places_taken(signals):
            self._taken_at = now

    def no_room_until(
        self,
        signals: WorkerSignals | None,
        kv: KvGeometry | None,
        tokens: int,
        *,
        begun: bool,
        streamed_at: Callable[[], float],
        now: float,
    ) -> float:
        """The last moment at which the engine worked and had no room for a request of `tokens`. One that has `begun`
        has a place, and can lack KV blocks alone. `streamed_at` finds out when an answer of it went on last, for an
        engine whose figures say less. -inf where there was no such moment."""
        short = signals is not None and kv is not None and _kv_short(signals, kv.blocks(tokens))
        full_at = now if short else NEVER if begun else self._taken_at
        worked_at = self._moved_at
        if worked_at < full_at - MOVES_SECONDS:
            worked_at = max(worked_at, streamed_at())
        return min(full_at, worked_at)


def _places_taken(signals: WorkerSignals) -> bool:
    if signals.role is Role.PREFILL:
        return signals.waiting_prompt_tokens > 0
    return 0 < signals.max_running_requests <= signals.running_requests


def _kv_short(signals: WorkerSignals, blocks: int) -> bool:
    return 0 < signals.kv_blocks_total < signals.kv_blocks_used + blocks
