"""Drives the lanes' gates: builds the facts, steps the table in `lanes`, runs the canaries that are due.

At most 4 canaries run at once, one for each pair; a failed one is tried again after 0.5 s · 2^n, at most 10 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random
from typing import Final, Protocol

from streamserve.contract.errors import StreamServeError
from streamserve.contract.signals import Role
from streamserve.router import lanes
from streamserve.router.canary import EXTRA_PROMPT_TOKENS, OUTPUT_TOKENS, UNKNOWN_BLOCK_TOKENS, Side, canary
from streamserve.router.flowguard.view import FleetView, LaneState, LaneView, WorkerView
from streamserve.router.lanes import Gate, LaneFacts, Outcome, PairKey, Trial
from streamserve.router.signals.bookings import Booking
from streamserve.router.signals.worker import TrackedWorker
from streamserve.router.worker_client import WorkerClient
from streamserve.runtime import logs
from streamserve.runtime.tasks import Tasks

CANARIES_AT_ONCE: Final = 4
RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 10.0
_log = logs.get(__name__)


class Book(Protocol):
    def __call__(self, worker_id: str, *, tokens: int) -> Booking: ...


class Gates:
    """Every lane's gate and every pair's trial. Set `stale` when a boot, a flag or a worker's health changed."""

    def __init__(
        self,
        tasks: Tasks,
        *,
        pair_uid: str,
        client: Callable[[str], WorkerClient],
        book: Book,
        changed: Callable[[], None],
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self.stale = True
        self._tasks = tasks
        self._pair_uid = pair_uid
        self._client = client
        self._book = book
        self._changed = changed
        self._clock = clock
        self._rng = rng
        self._gates: dict[str, Gate] = {}
        self._facts: dict[str, LaneFacts] = {}
        self._trials: dict[PairKey, Trial] = {}
        self._slots = asyncio.Semaphore(CANARIES_AT_ONCE)

    def view(self, workers: Mapping[str, TrackedWorker], now_seconds: float) -> tuple[LaneView, ...]:
        """Every lane as it stands, by name. Gates are stepped first when something they depend on changed."""
        by_lane = _by_lane(workers)
        if self.stale:
            self._step(by_lane, now_seconds)
        return tuple(self._lane(name, members) for name, members in by_lane.items())

    def tend(self, workers: Mapping[str, TrackedWorker], now_seconds: float) -> None:
        """Step every gate and start the canaries that are due."""
        self._step(_by_lane(workers), now_seconds)
        for facts in self._facts.values():
            for key in facts.due:
                self._trials[key] = Trial(Outcome.RUNNING, self._trials.get(key, Trial()).failures)
                self._tasks.spawn(f"canary-{key.prefill}-{key.decode}", self._try(key))
                self.stale = True

    def _step(self, by_lane: Mapping[str, tuple[WorkerView, ...]], now_seconds: float) -> None:
        view = FleetView(now_seconds=now_seconds, pair_uid=self._pair_uid)
        self._forget(by_lane)
        for name, members in by_lane.items():
            facts = self._facts[name] = lanes.facts_of(members, self._trials, view)
            before = self._gates.get(name) or lanes.opened(now_seconds)
            after = self._gates[name] = lanes.step(before, facts, now_seconds)
            if after.state is not before.state:
                _log.info("lane %s is %s: %s", name, after.state, after.reason or "its canary transfer passed")
        self.stale = False

    def _forget(self, by_lane: Mapping[str, tuple[WorkerView, ...]]) -> None:
        """Lanes that are gone, and trials of boots that are."""
        for name in [name for name in self._gates if name not in by_lane]:
            del self._gates[name], self._facts[name]
        boots = {worker.id: worker.boot_id for members in by_lane.values() for worker in members}
        for key in list(self._trials):
            if boots.get(key.prefill) != key.prefill_boot or boots.get(key.decode) != key.decode_boot:
                del self._trials[key]

    def _lane(self, name: str, members: tuple[WorkerView, ...]) -> LaneView:
        gate, facts = self._gates.get(name), self._facts.get(name)
        return LaneView(
            name=name,
            revision=members[0].revision,
            state=gate.state if gate else LaneState.WAITING,
            reason=gate.reason if gate else "",
            prefill=tuple(worker for worker in members if worker.role is Role.PREFILL),
            decode=tuple(worker for worker in members if worker.role is Role.DECODE),
            proven=facts.passed if facts else frozenset(),
            degraded=gate.degraded if gate else False,
        )

    async def _try(self, key: PairKey) -> None:
        """Run one canary and note its outcome, unless a side restarted meanwhile."""
        failures = self._trials[key].failures if key in self._trials else 0
        try:
            async with self._slots:
                # Clients first: they may raise, and a booking made before would never be released.
                clients = self._client(key.prefill), self._client(key.decode)
                prefill, decode = self._side(key.prefill, clients[0]), self._side(key.decode, clients[1])
                moved = await canary(prefill, decode, self._rng)
        except StreamServeError as error:
            retry_at = self._clock() + min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(failures, 10))
            self._note(key, lanes.failed(Trial(failures=failures), error.message, retry_at))
            _log.warning("canary %s -> %s failed: %s", key.prefill, key.decode, error.message)
        else:
            self._note(key, Trial(Outcome.PASSED))
            _log.info("canary %s -> %s moved %d bytes", key.prefill, key.decode, moved)

    def _side(self, worker_id: str, client: WorkerClient) -> Side:
        booking = self._book(worker_id, tokens=UNKNOWN_BLOCK_TOKENS + EXTRA_PROMPT_TOKENS + OUTPUT_TOKENS)
        return Side(worker_id, client, booking)

    def _note(self, key: PairKey, trial: Trial) -> None:
        if key in self._trials:
            self._trials[key] = trial
            self.stale = True
            self._changed()


def _by_lane(workers: Mapping[str, TrackedWorker]) -> dict[str, tuple[WorkerView, ...]]:
    """The workers of each lane, lanes and workers by name."""
    grouped: dict[str, list[WorkerView]] = {}
    for worker_id in sorted(workers):
        worker = workers[worker_id]
        if worker.lane:
            grouped.setdefault(worker.lane, []).append(worker.view())
    return {name: tuple(grouped[name]) for name in sorted(grouped)}
