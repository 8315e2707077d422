"""Late binding: a request gets its workers when they can take it, not when it arrives.

`place` waits its turn in the admission queue. Whenever something changes (an arrival, a booking given back, new
signals, an expiry) `pump` goes through the queue in order and picks for each; the first that finds every lane full
stops it, so that a big request is not overtaken for ever, but a retry that has excluded the free workers holds up
nobody. What is picked is booked before the next one looks. Who finds no lane for no reason of its own finds none for
all who are like it: a fleet without lanes must not make each arrival pick for all who wait. Such a fleet is not load: a
request waits PATIENCE_SECONDS for a lane to come back, then gets NoWorker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import Final

from streamserve.contract.errors import InvalidRequest, StreamServeError
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.signals import Role
from streamserve.router.flowguard.decision import Decision, NoLane
from streamserve.router.flowguard.pick import Cursor, pick
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.scheduler.admission import AdmissionQueue, Ticket, infeasible
from streamserve.router.scheduler.request import GenerationRequest
from streamserve.router.signals.bookings import Booking
from streamserve.router.signals.fleet import Fleet

PATIENCE_SECONDS: Final = 1.0
# A wait beyond its mean by twice its standard deviation is rare enough to let a request in on its deadline.
SPREADS: Final = 2.0
_CHANGE_SECONDS: Final = 0.25


@dataclass(slots=True)
class Placement:
    """Workers chosen and booked. Each booking is given back once; `release` gives back what is left."""

    decision: Decision
    prefill: Booking | None
    decode: Booking | None
    _freed: Callable[[], None]

    def release_prefill(self) -> None:
        booking, self.prefill = self.prefill, None
        if booking is not None:
            booking.release()
            self._freed()

    def release(self) -> None:
        self.release_prefill()
        booking, self.decode = self.decode, None
        if booking is not None:
            booking.release()
            self._freed()


_Like = tuple[frozenset[str], bool, bool, bool]
"""Excluded workers; alone on its decode worker; one token; a prompt that is short enough to be computed there."""


@dataclass(frozen=True, slots=True)
class _Waiter:
    ticket: Ticket
    request: GenerationRequest
    excluded: frozenset[str]
    local: bool
    since_seconds: float
    future: asyncio.Future[Placement]


class Dispatcher:
    """Owns the queue, the pick and the bookings of one router."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        config: Callable[[], RuntimeConfig],
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self.queue = AdmissionQueue(rng)
        self._fleet = fleet
        self._config = config
        self._clock = clock
        self._rng = rng
        self._cursor = Cursor()
        self._numbers = count()
        self._waiters: dict[int, _Waiter] = {}
        self._wake = asyncio.Event()
        self._pumping = False

    async def place(
        self,
        request: GenerationRequest,
        *,
        excluded: frozenset[str] = frozenset(),
        local: bool = False,
        again: bool = False,
    ) -> Placement:
        """Workers for this attempt, booked. Raises what admission or the pick refuses it with."""
        now = self._clock()
        ticket = Ticket(
            number=next(self._numbers),
            tokens=request.prompt_tokens,
            arrival_seconds=now if again else request.arrival_seconds,
            deadline_seconds=request.deadline_seconds,
            # A retry has waited once already: it goes before its equals.
            priority=request.priority + (100 if again else 0),
        )
        self.queue.offer(ticket, now, self._config().admission, again=again)
        future: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self._waiters[ticket.number] = _Waiter(ticket, request, excluded, local, now, future)
        self.pump(now)
        self._wake.set()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().release()
            raise
        finally:
            self._waiters.pop(ticket.number, None)
            self.queue.remove(ticket)

    def decide(self, request: GenerationRequest, excluded: frozenset[str] = frozenset()) -> Decision:
        """What the pick would say now; books nothing. Raises NoLane."""
        cursor = Cursor()
        cursor.position = self._cursor.position
        return self._pick(request, excluded, False, cursor)

    def pump(self, now: float | None = None) -> None:
        """Give workers to as many as can have them now, in order, and end those whose time is over.

        `now`: when the newest came in; who gets workers at that very time has not waited.
        """
        if self._pumping or not self._waiters:
            return
        self._pumping = True
        now = self._clock() if now is None else now
        nowhere: dict[_Like, NoLane] = {}
        try:
            self._expire(now)
            for ticket in self.queue.in_order():
                waiter = self._waiters.get(ticket.number)
                if waiter is None or waiter.future.done():
                    continue
                if not self._try(waiter, now, nowhere) and not waiter.excluded:
                    break
        finally:
            self._pumping = False

    async def run(self) -> None:
        """Pump on every change of the fleet and at every expiry, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_fleet(), name="dispatch-fleet")
            group.create_task(self._follow_expiry(), name="dispatch-expiry")

    async def _follow_fleet(self) -> None:
        while True:
            if not self._waiters:
                self._wake.clear()
                await self._wake.wait()
            await self._fleet.wait_change(_CHANGE_SECONDS)
            self.pump()

    async def _follow_expiry(self) -> None:
        while True:
            expiry = self.queue.next_expiry_seconds(self._config().admission)
            if expiry is None:
                self._wake.clear()
                await self._wake.wait()
                continue
            # Bounds are hot and a nearer deadline may arrive: look again soon.
            await asyncio.sleep(min(max(0.0, expiry - self._clock()), _CHANGE_SECONDS))
            self.pump()

    def _expire(self, now: float) -> None:
        for ticket, error in self.queue.expired(now, self._config().admission):
            waiter = self._waiters.get(ticket.number)
            if waiter is not None and not waiter.future.done():
                waiter.future.set_exception(error)

    def _try(self, waiter: _Waiter, now: float, nowhere: dict[_Like, NoLane]) -> bool:
        """False when the request has to go on waiting for load to pass. `nowhere`: who has found no lane in this turn,
        and will not."""
        like = self._like(waiter)
        if (known := nowhere.get(like)) is not None:
            self._none_for(waiter, known, now)
            return True
        try:
            decision = self._pick(waiter.request, waiter.excluded, waiter.local, self._cursor)
        except NoLane as error:
            if error.whatever_its_size:
                nowhere[like] = error
            self._none_for(waiter, error, now)
            return not error.busy
        needed = decision.chosen.ttft_seconds
        if (decode := decision.chosen.decode) is not None:
            needed += decode.tpot_seconds * max(0, waiter.request.least_tokens - 1)
            needed += SPREADS * decode.wait_spread_seconds
        left = waiter.request.deadline_seconds - now
        if needed > left:
            self._refuse(waiter, infeasible(needed, left, self.queue.retry_after_seconds()))
            return True
        try:
            placement = self._book(waiter.request, decision)
        except StreamServeError as error:
            self._refuse(waiter, error)
            return True
        self.queue.dispatched(waiter.ticket, now)
        waiter.future.set_result(placement)
        return True

    def _none_for(self, waiter: _Waiter, error: NoLane, now: float) -> None:
        """Nobody can take it now: the end of it, unless time may help."""
        if error.too_long:
            self._refuse(waiter, InvalidRequest(str(error), field="prompt"))
        elif not error.busy and (waiter.excluded or now - waiter.since_seconds >= PATIENCE_SECONDS):
            self._refuse(waiter, NoLane(error.refused, busy=False))

    def _like(self, waiter: _Waiter) -> _Like:
        """What of a request the filters and the ladder look at, but for its length in tokens and blocks."""
        request = waiter.request
        short = request.prompt_tokens <= self._config().routing.local_prefill_max_tokens
        return (waiter.excluded, waiter.local, request.max_tokens == 1, short)

    def _refuse(self, waiter: _Waiter, error: StreamServeError) -> None:
        self.queue.remove(waiter.ticket)
        waiter.future.set_exception(error)

    def _pick(self, request: GenerationRequest, excluded: frozenset[str], local: bool, cursor: Cursor) -> Decision:
        view = self._fleet.view()
        if local:
            prefills = {worker.id for lane in view.lanes for worker in lane.workers if worker.role is Role.PREFILL}
            excluded = excluded | prefills
        route = RouteRequest(
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            workload=request.workload,
            excluded_workers=excluded,
            prompt_estimated=request.prompt_estimated,
        )
        if request.exact_output:
            route = replace(route, expected_output_tokens=float(request.max_tokens))
        return pick(route, view, self._config(), self._rng, cursor)

    def _book(self, request: GenerationRequest, decision: Decision) -> Placement:
        placement = Placement(decision, None, None, self._freed)
        try:
            if decision.prefill_worker is not None:
                placement.prefill = self._fleet.book(decision.prefill_worker, tokens=request.prompt_tokens)
            if decision.decode_worker is not None:
                tokens = request.prompt_tokens + request.max_tokens
                placement.decode = self._fleet.book(decision.decode_worker, tokens=tokens)
        except StreamServeError:
            placement.release()
            raise
        return placement

    def _freed(self) -> None:
        if self._waiters:
            self._wake.set()
            self.pump()
