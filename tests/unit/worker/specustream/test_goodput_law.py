"""The default law against a modelled engine: it must stay in bounds, find the best depth, and not thrash."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.worker.specustream.laws import Knowledge, Load
from streamserve.worker.specustream.laws.goodput import PARITY_STEPS, Goodput
from streamserve.worker.specustream.laws.make import make_law
from streamserve.worker.specustream.policy import MAX_DEPTH, DepthPolicy
from streamserve.worker.specustream.steptimes import bucket_of


@dataclass(frozen=True)
class Engine:
    """A drafter that is right with `acceptance` at every position, and steps that take `seconds(depth)`."""

    acceptance: float
    seconds: Callable[[int], float]
    requests: int = 4


def run(policy: DepthPolicy, engine: Engine, *, steps: int, seed: int = 0) -> list[int]:
    """Depths chosen; drafts are verified one step after they were chosen, as in vLLM."""
    law, world = make_law(policy, Knowledge.empty(), Random(seed)), Random(seed + 1)
    chosen, pending = [], 0
    for _ in range(steps):
        depth = law.choose(Load(engine.requests)).depth
        for _ in range(engine.requests):
            accepted = 0
            while accepted < pending and world.random() < engine.acceptance:
                accepted += 1
            if pending:
                law.observe_acceptance({(pending, accepted): 1})
        if pending == depth:
            law.observe_step(bucket_of(engine.requests), depth, engine.seconds(depth) * world.uniform(0.97, 1.03))
        chosen.append(depth)
        pending = depth
    return chosen


def settled(depths: list[int]) -> int:
    return Counter(depths[-300:]).most_common(1)[0][0]


BOUNDS = DepthPolicy("Goodput", 1, 6)
CASES = {
    "a drafter that is always right, in steps that hardly grow, settles at max": (
        BOUNDS,
        Engine(1.0, lambda k: 0.01 * (1 + 0.01 * k)),
        6,
    ),
    "a drafter that is always wrong settles at min": (BOUNDS, Engine(0.0, lambda k: 0.01 * (1 + 0.1 * k)), 1),
    "a drafter that is always wrong settles at min even when drafts seem free": (
        BOUNDS,
        Engine(0.0, lambda k: 0.01),
        1,
    ),
    "a right drafter does not pay when a draft costs as much as a step": (
        DepthPolicy("Goodput", 0, 6),
        Engine(0.9, lambda k: 0.01 * (1 + k)),
        0,
    ),
    "in between, the depth is where tokens per second peak": (
        DepthPolicy("Goodput", 0, 6),
        # E(k)/t(k) for acceptance 0.7: 1.00 1.48 1.64 1.60 1.48 1.34 1.21
        Engine(0.7, lambda k: 0.01 * (1 + 0.15 * k if k < 2 else 1.335 + 0.24 * (k - 2))),
        2,
    ),
    "a bound on the step's time caps the depth": (
        DepthPolicy("Goodput", 0, 6, itl_seconds=0.0140),
        Engine(1.0, lambda k: 0.01 * (1 + 0.1 * k)),
        3,
    ),
    "a bound that nothing keeps leaves the shallowest": (
        DepthPolicy("Goodput", 1, 6, itl_seconds=0.001),
        Engine(1.0, lambda k: 0.01 * (1 + 0.1 * k)),
        1,
    ),
}


@pytest.mark.parametrize(("policy", "engine", "want"), CASES.values(), ids=CASES.keys())
def test_settles(policy: DepthPolicy, engine: Engine, want: int) -> None:
    assert settled(run(policy, engine, steps=1500)) == want


def test_a_shallower_depth_that_is_only_as_good_has_to_be_so_for_a_while() -> None:
    """Between equals noise must not decide, nor the deeper one stay for ever."""
    knowledge = Knowledge.empty()
    law = Goodput(DepthPolicy("Goodput", 2, 3, probe_fraction=0.0), knowledge, Random(0))
    for _ in range(400):
        knowledge.acceptance.observe({(3, 2): 1})
    for depth in (2, 3):
        for _ in range(20):
            knowledge.step_times.observe(0, depth, 0.01)
    chosen = [law.choose(Load(1)).depth for _ in range(3 * PARITY_STEPS)]
    assert chosen[: PARITY_STEPS - 1] == [3] * (PARITY_STEPS - 1)
    assert chosen[-1] == 2


@given(
    bounds=st.tuples(st.integers(0, MAX_DEPTH), st.integers(0, MAX_DEPTH)).map(sorted),
    fixed=st.integers(0, MAX_DEPTH),
    policy=st.sampled_from(["Goodput", "Fixed", "Off"]),
    acceptance=st.floats(0, 1),
    growth=st.floats(0, 1),
    probe=st.floats(0, 1),
    requests=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_never_leaves_its_bounds(
    bounds: list[int],
    fixed: int,
    policy: str,
    acceptance: float,
    growth: float,
    probe: float,
    requests: int,
    seed: int,
) -> None:
    low, high = bounds
    rules = DepthPolicy(policy, low, high, fixed, probe_fraction=probe)
    depths = run(rules, Engine(acceptance, lambda k: 0.01 * (1 + growth * k), min(requests, 8)), steps=80, seed=seed)
    allowed = {0} if policy == "Off" else {rules.clamp(fixed)} if policy == "Fixed" else set(range(low, high + 1))
    assert set(depths) <= allowed


@given(seed=st.integers(0, 1000), acceptance=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_same_past_and_same_chance_give_the_same_depths(seed: int, acceptance: float) -> None:
    engine = Engine(acceptance, lambda k: 0.01 * (1 + 0.1 * k))
    assert run(BOUNDS, engine, steps=200, seed=seed) == run(BOUNDS, engine, steps=200, seed=seed)


def test_probes_stay_within_their_share() -> None:
    policy = DepthPolicy("Goodput", 0, 6, probe_fraction=0.1)
    law, world = Goodput(policy, Knowledge.empty(), Random(1)), Random(2)
    reasons = Counter[str]()
    for _ in range(4000):
        choice = law.choose(Load(4))
        law.observe_step(2, choice.depth, 0.01 * (1 + 0.05 * choice.depth) * world.uniform(0.99, 1.01))
        reasons[choice.reason] += 1
    assert 0.05 < reasons["probe"] / 4000 < 0.12


def test_without_probes_only_anchors_explore() -> None:
    depths = run(DepthPolicy("Goodput", 0, 6, probe_fraction=0.0), Engine(0.8, lambda k: 0.01), steps=400)
    assert len(set(depths[-200:])) == 1


def test_every_load_bucket_keeps_a_depth_of_its_own() -> None:
    law = Goodput(DepthPolicy("Goodput", 0, 6), Knowledge.empty(), Random(0))
    for _ in range(4):
        for requests, cost in ((1, 0.01), (64, 1.0)):
            depths = []
            for _ in range(300):
                depth = law.choose(Load(requests)).depth
                law.observe_acceptance({(6, 6): 1})
                law.observe_step(bucket_of(requests), depth, 0.01 * (1 + cost * depth * 1.2))
                depths.append(depth)
            assert settled(depths) == (6 if requests == 1 else 0)


def test_one_stall_does_not_move_the_depth() -> None:
    law = Goodput(DepthPolicy("Goodput", 0, 6, probe_fraction=0.0), Knowledge.empty(), Random(0))
    for step in range(600):
        depth = law.choose(Load(4)).depth
        law.observe_acceptance({(6, 5): 1})
        law.observe_step(2, depth, 5.0 if step == 400 else 0.01 * (1 + 0.05 * depth))
        if step > 300:
            assert depth == 5


@pytest.mark.parametrize(("bound_seconds", "slowdown"), [(0.030, 8.0), (0.020, 3.0), (0.022, 2.5)])
def test_a_slow_spell_at_the_start_does_not_forbid_depths_for_good(bound_seconds: float, slowdown: float) -> None:
    """What broke the inter-token bound while the machine was slow keeps it with room to spare afterwards."""
    policy = DepthPolicy("Goodput", 0, 6, itl_seconds=bound_seconds, probe_fraction=0.05)
    law, world, depths = Goodput(policy, Knowledge.empty(), Random(1)), Random(2), list[int]()
    for step in range(30_000):
        depth = law.choose(Load(1)).depth
        slow = slowdown if step < 300 else 1.0
        law.observe_acceptance({(6, 5): 1})
        law.observe_step(0, depth, slow * (0.010 + 0.001 * depth) * world.uniform(0.97, 1.03))
        depths.append(depth)
    assert settled(depths) == 5


def test_a_depth_that_breaks_the_bound_is_tried_seldom() -> None:
    policy = DepthPolicy("Goodput", 0, 6, itl_seconds=0.0135, probe_fraction=0.1)
    law, world, depths = Goodput(policy, Knowledge.empty(), Random(1)), Random(2), Counter[int]()
    for step in range(20_000):
        depth = law.choose(Load(1)).depth
        law.observe_acceptance({(6, 5): 1})
        law.observe_step(0, depth, (0.010 + 0.001 * depth) * world.uniform(0.99, 1.01))
        depths[depth] += step > 1_000
    assert depths.most_common(1)[0][0] == 3
    assert 0 < sum(depths[depth] for depth in (4, 5, 6)) / depths.total() < 0.02
