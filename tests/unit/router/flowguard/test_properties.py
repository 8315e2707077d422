"""What holds of every fleet and every request."""

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamserve.contract.runtime_config import CrossLane, FailurePolicy, RoutingPolicy, RoutingWeights, RuntimeConfig
from streamserve.contract.signals import Flags, Role, WorkerSignals
from streamserve.router.flowguard.decision import Decision, NoLane, Reason
from streamserve.router.flowguard.explain import explained, terms
from streamserve.router.flowguard.pick import Cursor, pick
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import FleetView, Health, LaneState, LaneView, WorkerView, trust

from .builders import NOW, lane, settings

RATES = st.one_of(st.just(0.0), st.floats(1e-30, 1e30), st.floats(1.0, 1e5))
COUNTS = st.integers(0, 2**32 - 1) | st.integers(0, 100)


@st.composite
def workers(draw: st.DrawFn, base: WorkerView) -> WorkerView:
    assert base.signals is not None
    total = draw(st.integers(0, 10_000))
    signals = replace(
        base.signals,
        flags=draw(st.sampled_from([Flags.NONE, Flags.NONE, Flags.DRAINING, Flags.ENGINE_DEAD])),
        running_requests=draw(COUNTS),
        waiting_requests=draw(COUNTS),
        waiting_prompt_tokens=draw(COUNTS),
        max_running_requests=draw(COUNTS),
        kv_blocks_total=total,
        kv_blocks_used=draw(st.integers(0, total)),
        prefill_tokens_per_second=draw(RATES),
        step_base_seconds=draw(RATES),
        step_per_request_seconds=draw(RATES),
        mean_emitted_tokens_per_step=draw(RATES),
        transfer_bytes_per_second=draw(RATES),
    )
    return replace(
        base,
        signals=draw(st.sampled_from([signals, signals, signals, None])),
        seen_at_seconds=NOW - draw(st.floats(0, 100)),
        booked_requests=draw(st.integers(0, 100)),
        booked_tokens=draw(st.integers(0, 10**6)),
        own_requests=draw(st.integers(0, 100)),
        health=draw(st.sampled_from([Health.OK, Health.OK, Health.OK, Health.SUSPECT, Health.CIRCUIT_OPEN])),
        kv=draw(st.sampled_from([base.kv, None])),
        max_model_tokens=draw(st.sampled_from([0, 50, 100_000])),
    )


@st.composite
def lanes(draw: st.DrawFn, name: str) -> LaneView:
    plain = lane(name, prefills=draw(st.integers(0, 2)), decodes=draw(st.integers(0, 2))).build()
    return replace(
        plain,
        state=draw(st.sampled_from([LaneState.READY, LaneState.READY, LaneState.FENCED, LaneState.WAITING])),
        degraded=draw(st.booleans()),
        prefill=tuple(draw(workers(worker)) for worker in plain.prefill),
        decode=tuple(draw(workers(worker)) for worker in plain.decode),
        proven=frozenset(pair for pair in sorted(plain.proven) if draw(st.booleans())),
    )


@st.composite
def fleets(draw: st.DrawFn) -> FleetView:
    names = ["a", "b", "c"][: draw(st.integers(0, 3))]
    return FleetView(now_seconds=NOW, pair_uid="uid-1", lanes=tuple(draw(lanes(name)) for name in names))


REQUESTS = st.builds(
    RouteRequest,
    prompt_tokens=st.integers(1, 200_000),
    max_tokens=st.integers(1, 100_000),
    cached_prompt_tokens=st.integers(0, 1_000),
    excluded_workers=st.frozensets(st.sampled_from(["a-p0", "b-d0", "c-p0"])),
    expected_output_tokens=st.none() | st.floats(0, 1e6),
)
CONFIGS = st.builds(
    settings,
    failure=st.sampled_from(FailurePolicy),
    policy=st.sampled_from(RoutingPolicy),
    cross_lane=st.sampled_from(CrossLane),
    local_prefill_max_tokens=st.sampled_from([0, 64, 10_000]),
)


def attempt(request: RouteRequest, view: FleetView, config: RuntimeConfig) -> Decision | NoLane:
    try:
        return pick(request, view, config, Random(1), Cursor())
    except NoLane as error:
        return error


@given(REQUESTS, fleets(), CONFIGS)
def test_a_pick_never_names_a_refused_worker_and_its_costs_are_finite(
    request: RouteRequest, view: FleetView, config: RuntimeConfig
) -> None:
    outcome = attempt(request, view, config)
    answer = explained(outcome)
    if isinstance(outcome, NoLane):
        assert not answer.chosen and not answer.candidates
        return
    refused = {refusal.worker for refusal in outcome.refused if refusal.reason is not Reason.NOT_PROVEN}
    assert not refused & {outcome.prefill_worker, outcome.decode_worker}
    assert outcome.prefill_worker is not None or outcome.decode_worker is not None
    for candidate in outcome.candidates:
        assert math.isfinite(candidate.cost_seconds) and candidate.cost_seconds >= 0
        assert all(math.isfinite(value) for _, value, _ in terms(candidate))
    assert all(candidate.reason for candidate in answer.candidates)
    assert answer.chosen == outcome.lane and len(answer.candidates) == len(outcome.candidates)


@given(REQUESTS, fleets())
def test_flow_guard_takes_no_way_that_costs_more_than_a_near_tie(request: RouteRequest, view: FleetView) -> None:
    outcome = attempt(request, view, settings())
    if isinstance(outcome, Decision):
        least = min(candidate.cost_seconds for candidate in outcome.candidates)
        assert outcome.chosen.cost_seconds <= least + max(0.03 * least, 0.002)


LOADS = st.fixed_dictionaries(
    {
        "waiting_prompt_tokens": st.integers(0, 50_000),
        "running_requests": st.integers(0, 10),
        "kv_blocks_used": st.integers(0, 1_000),
        "waiting_requests": st.integers(0, 10),
    }
)


@pytest.mark.parametrize("old", [False, True])
@given(
    fleet_loads=st.lists(st.tuples(LOADS, st.floats(0, 10)), min_size=2, max_size=4),
    extra=LOADS,
    tokens=st.integers(0, 5_000),
    requests=st.integers(0, 10),
)
def test_adding_load_to_a_lane_never_makes_it_more_attractive(
    old: bool, fleet_loads: list[tuple[dict[str, int], float]], extra: dict[str, int], tokens: int, requests: int
) -> None:
    """What is added to one lane moves no other lane's cost up by more.

    Signals that are old move with what is usual, the added load included. Not so in the term of the SLO, which counts a
    second that is over it and none below: an old lane's over it may weigh twice where the lane's own does not count.
    """

    def view(more: dict[str, int], booked_tokens: int, booked_requests: int) -> FleetView:
        built = []
        for index, (load, age) in enumerate(fleet_loads):
            plain = lane(f"l{index}").last_seen(seconds=age if old else 0.0)
            added = {name: load[name] + (more.get(name, 0) if index == 0 else 0) for name in load}
            plain._signals(Role.PREFILL, waiting_prompt_tokens=added.pop("waiting_prompt_tokens"))
            plain._signals(Role.DECODE, max_running_requests=1_000, **added)
            if index == 0:
                plain.booked(tokens=booked_tokens, requests=booked_requests)
            built.append(plain.build())
        return FleetView(now_seconds=NOW, pair_uid="uid-1", lanes=tuple(built))

    request = RouteRequest(prompt_tokens=100, max_tokens=100)
    rules = settings(weights_percent=RoutingWeights(slo=0)) if old else settings()
    before = attempt(request, view({}, 0, 0), rules)
    after = attempt(request, view(extra, tokens, requests), rules)
    assert isinstance(before, Decision) and isinstance(after, Decision)
    costs_before = {c.lane: c.cost_seconds for c in before.candidates}
    costs_after = {c.lane: c.cost_seconds for c in after.candidates}
    assert costs_before.keys() == costs_after.keys()
    for other, cost_before in costs_before.items():
        lead_before = cost_before - costs_before["l0"]
        lead_after = costs_after[other] - costs_after["l0"]
        assert lead_after <= lead_before + 1e-9


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.1, 60))
def test_trust_falls_with_age_and_stays_between_0_and_1(young: float, older: float, seconds: float) -> None:
    young, older = sorted((young, older))
    assert 0.0 <= trust(older, seconds) <= trust(young, seconds) <= 1.0


def test_trust_is_whole_until_a_heartbeat_is_really_missing() -> None:
    assert trust(0.75, 1.0) == 1.0
    assert 0.99 < trust(0.7501, 1.0) < 1.0
    assert math.isclose(trust(1.75, 1.0), math.exp(-1))
    assert trust(math.inf, 1.0) == 0.0


def test_a_worker_without_signals_is_a_prior_and_not_a_crash() -> None:
    assert WorkerSignals(role=Role.DECODE, boot_id=1, epoch=1, uid_fingerprint=0).step_seconds(4) == 0.0
