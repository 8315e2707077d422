"""Who may serve this request at all, and for everyone else: why not.

Filters run from the worker's own state to the request's demands; the first that objects is the reason shown. Two
kinds of reason are kept apart, because they call for different answers:

    hard       the worker will not take this request whatever the load: look further down the failure ladder
    passing    capacity, KV blocks, a probe that is on its way: waiting helps, so the request stays queued

Capacity and KV are judged by the worker's signals only while these are trusted (trust >= 0.5). Older than that they
could shut a worker out for ever, so then this router's own requests are what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streamserve.contract.signals import Role
from streamserve.router.flowguard.decision import PASSING_REASONS, Reason, Refusal
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import FleetView, Health, LaneState, LaneView, WorkerView

# More requests than the engine runs at once, so that it never waits for the router between two steps.
LOOK_AHEAD_FRACTION: Final = 0.125
LOOK_AHEAD_MIN_REQUESTS: Final = 2
TRUSTED: Final = 0.5


class Sieve:
    """The filters' verdict on every worker of a view, for one request."""

    def __init__(
        self, request: RouteRequest, view: FleetView, trusts: Mapping[str, float], *, output_tokens: float
    ) -> None:
        """`trusts`: by worker id, what its signals are worth."""
        self.refusals: dict[str, Refusal] = {}
        for lane in view.lanes:
            for worker in lane.workers:
                found = objection(worker, request, view, trusts[worker.id], output_tokens)
                if found is not None:
                    self.refusals[worker.id] = Refusal(lane.name, worker.id, *found)

    def free(self, worker: WorkerView) -> bool:
        """Nothing speaks against it."""
        return worker.id not in self.refusals

    def possible(self, worker: WorkerView) -> bool:
        """Nothing, or only what passes by itself, speaks against it."""
        refusal = self.refusals.get(worker.id)
        return refusal is None or refusal.reason in PASSING_REASONS

    def all(self, view: FleetView) -> tuple[Refusal, ...]:
        """Every refusal, lanes that are not ready first."""
        lanes = [refusal for lane in view.lanes if (refusal := lane_refusal(lane)) is not None]
        return (*lanes, *self.refusals.values())


def lane_refusal(lane: LaneView) -> Refusal | None:
    """Only a READY lane takes requests on the ladder's first step."""
    if lane.state is LaneState.READY:
        return None
    return Refusal(lane.name, "", Reason.LANE_NOT_READY, f"{lane.state}: {lane.reason or 'no reason given'}")


def objection(
    worker: WorkerView, request: RouteRequest, view: FleetView, trust: float, output_tokens: float
) -> tuple[Reason, str] | None:
    """The first filter that objects to this worker, with what it saw."""
    if worker.id in request.excluded_workers:
        return Reason.EXCLUDED, "it failed an earlier attempt of this request"
    return (
        _state(worker, view)
        or _too_long(worker, request)
        or _at_capacity(worker, trust)
        or _kv_full(worker, request, trust, output_tokens)
    )


def _state(worker: WorkerView, view: FleetView) -> tuple[Reason, str] | None:
    """What is wrong with it whatever the request."""
    signals = worker.signals
    if worker.pair_uid and worker.pair_uid != view.pair_uid:
        return Reason.OTHER_PAIR, f"it was started for StreamPair uid {worker.pair_uid}"
    if signals is None:
        return Reason.NO_SIGNALS, "it has not reported since it started"
    if not signals.serves_pair(view.pair_uid):
        return Reason.OTHER_PAIR, "its signals carry another StreamPair's uid"
    if signals.engine_dead:
        return Reason.ENGINE_DEAD, "its engine has died"
    if signals.draining:
        return Reason.DRAINING, "it finishes what it has and takes nothing new"
    if worker.health is Health.CIRCUIT_OPEN:
        return Reason.CIRCUIT_OPEN, worker.health_detail
    if worker.health is Health.SUSPECT:
        return Reason.SUSPECT, worker.health_detail
    return None


def _too_long(worker: WorkerView, request: RouteRequest) -> tuple[Reason, str] | None:
    wanted = request.prompt_tokens + request.max_tokens
    if request.prompt_estimated:
        return None
    if 0 < worker.max_model_tokens < wanted:
        return Reason.TOO_LONG, f"prompt and output take {wanted} tokens, the model {worker.max_model_tokens}"
    if worker.kv is not None and worker.signals is not None and worker.signals.kv_blocks_total > 0:
        blocks = worker.kv.blocks(wanted if worker.role is Role.DECODE else request.prompt_tokens)
        if blocks > worker.signals.kv_blocks_total:
            return Reason.TOO_LONG, f"it takes {blocks} KV blocks, there are {worker.signals.kv_blocks_total}"
    return None


def _at_capacity(worker: WorkerView, trust: float) -> tuple[Reason, str] | None:
    signals = worker.signals
    if signals is None or signals.max_running_requests <= 0:
        return None
    room = signals.max_running_requests
    room += max(LOOK_AHEAD_MIN_REQUESTS, int(room * LOOK_AHEAD_FRACTION))
    inside = requests_on(worker) if trust >= TRUSTED else worker.own_requests
    return (Reason.AT_CAPACITY, f"{inside} requests on it, room for {room}") if inside >= room else None


def _kv_full(
    worker: WorkerView, request: RouteRequest, trust: float, output_tokens: float
) -> tuple[Reason, str] | None:
    signals, kv = worker.signals, worker.kv
    if signals is None or kv is None or signals.kv_blocks_total <= 0 or trust < TRUSTED:
        return None
    need = kv.blocks(request.prompt_tokens + (int(output_tokens) if worker.role is Role.DECODE else 0))
    free = signals.kv_blocks_total - signals.kv_blocks_used - kv.blocks(worker.booked_tokens)
    # An idle worker takes anything that fits it at all: the blocks it seems to miss are a prefix cache's.
    if need > free and requests_on(worker) > 0 and not _beyond(worker, request, need):
        return Reason.KV_FULL, f"it takes {need} KV blocks, {max(0, free)} are free"
    return None


def _beyond(worker: WorkerView, request: RouteRequest, need: int) -> bool:
    """An estimate of more than can ever be here: no wait makes room for it, and whoever is behind would wait in vain.

    The worker counts the tokens: it takes fewer, and refuses so many at once.
    """
    total = 0 if worker.signals is None else worker.signals.kv_blocks_total
    return request.prompt_estimated and (need > total or 0 < worker.max_model_tokens <= request.prompt_tokens)


def requests_on(worker: WorkerView) -> int:
    """Requests running or waiting there, by its signals, and those of ours that these do not show yet."""
    signals = worker.signals
    return worker.booked_requests + (0 if signals is None else signals.running_requests + signals.waiting_requests)
