"""The local planner: single steps by table, then whole roll-outs simulated to a fixpoint with their invariants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.contract.lanes import (
    FAILURES_LIMIT,
    Action,
    LaneNow,
    Reason,
    RetireLane,
    RetireWorker,
    Slot,
    StartLane,
    StartWorker,
    Wanted,
    plan,
)

PAIR = frozenset([Slot("prefill", 0), Slot("decode", 0)])
SECOND = Slot("decode", 1)


def lane(index: int, revision: str = "a", **changes: object) -> LaneNow:
    """A lane that takes traffic, unless told otherwise."""
    now = LaneNow(index=index, revision=revision, slots=PAIR, ready=True, was_ready=True)
    return replace(now, **changes)  # type: ignore[arg-type]


def starting(index: int, revision: str = "a", **changes: object) -> LaneNow:
    return lane(index, revision, ready=False, was_ready=False, **changes)


def wanted(revision: str = "a", lanes: int = 2, **changes: object) -> Wanted:
    return replace(Wanted(revision=revision, lanes=lanes), **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    wanted: Wanted
    lanes: tuple[LaneNow, ...]
    actions: tuple[Action, ...] = ()
    halted: str = ""
    done: bool = False


CASES = {
    "at the start every lane is missing": Case(
        wanted(), (), (StartLane(0, Reason.MISSING), StartLane(1, Reason.MISSING))
    ),
    "lanes that load are waited for": Case(wanted(), (starting(0), starting(1))),
    "nothing is left to do when every lane takes traffic": Case(wanted(), (lane(0), lane(1)), done=True),
    "a cold edit takes the lowest lane first": Case(
        wanted("b"), (lane(0), lane(1)), (RetireLane(0, Reason.REVISION_CHANGED),)
    ),
    "the second lane waits while the first drains": Case(wanted("b"), (lane(0, retiring=True), lane(1))),
    "the second lane waits while the first loads": Case(wanted("b"), (starting(0, "b"), lane(1))),
    "the second lane goes when the first takes traffic": Case(
        wanted("b"), (lane(0, "b"), lane(1)), (RetireLane(1, Reason.REVISION_CHANGED),)
    ),
    "two lanes may go at once where two may be unavailable": Case(
        wanted("b", 3, max_unavailable=2),
        (lane(0), lane(1), lane(2)),
        (RetireLane(0, Reason.REVISION_CHANGED), RetireLane(1, Reason.REVISION_CHANGED)),
    ),
    "a single lane is replaced where one may be unavailable": Case(
        wanted("b", 1), (lane(0),), (RetireLane(0, Reason.REVISION_CHANGED),)
    ),
    "a surge lane comes first where none may be unavailable": Case(
        wanted("b", 1, max_unavailable=0, max_surge=1), (lane(0),), (StartLane(1, Reason.MISSING),)
    ),
    "the old lane goes when the surge lane takes traffic": Case(
        wanted("b", 1, max_unavailable=0, max_surge=1),
        (lane(0), lane(1, "b")),
        (RetireLane(0, Reason.REVISION_CHANGED),),
    ),
    "the surge lane stays until its successor takes traffic": Case(
        wanted("b", 1, max_unavailable=0, max_surge=1), (starting(0, "b"), lane(1, "b"))
    ),
    "the surge lane goes at the end": Case(
        wanted("b", 1, max_unavailable=0, max_surge=1),
        (lane(0, "b"), lane(1, "b")),
        (RetireLane(1, Reason.SCALED_DOWN),),
    ),
    "an outdated lane that never served is replaced at once": Case(
        wanted("b"), (starting(0), lane(1)), (RetireLane(0, Reason.REVISION_CHANGED),)
    ),
    "a lane that is fenced for a moment counts as serving": Case(
        wanted("b"),
        (lane(0, ready=False, unready_seconds=1.0), lane(1)),
        (RetireLane(0, Reason.REVISION_CHANGED),),
    ),
    "scaling down takes the highest lanes": Case(
        wanted(lanes=1),
        (lane(0), lane(1), lane(2)),
        (RetireLane(2, Reason.SCALED_DOWN), RetireLane(1, Reason.SCALED_DOWN)),
    ),
    "scaling down waits for the lane that stays": Case(wanted(lanes=1, max_unavailable=0), (starting(0), lane(1))),
    "scaling up adds the next index": Case(
        wanted(lanes=3), (lane(0), lane(1)), (StartLane(2, Reason.MISSING),)
    ),
    "no lanes wanted, all retire": Case(wanted(lanes=0), (lane(0),), (RetireLane(0, Reason.SCALED_DOWN),)),
    "a bad revision stops after its first lane": Case(
        wanted("b"),
        (starting(0, "b", failures=FAILURES_LIMIT, last_words="unknown flag --foo"), lane(1)),
        halted="lane-0 of revision b died 3 times or more; its last words: unknown flag --foo",
    ),
    "a revision that never gets ready stops the roll-out": Case(
        wanted("b", ready_seconds=60),
        (starting(0, "b", unready_seconds=61.0), lane(1)),
        halted="lane-0 of revision b is not ready after 60 s",
    ),
    "a halted roll-out does not add lanes": Case(
        wanted("b", 3),
        (starting(0, "b", failures=FAILURES_LIMIT), lane(1)),
        halted="lane-0 of revision b died 3 times or more",
    ),
    "a mended file replaces the lane that failed": Case(
        wanted("c"),
        (starting(0, "b", failures=FAILURES_LIMIT), lane(1)),
        (RetireLane(0, Reason.REVISION_CHANGED),),
    ),
    "going back replaces only the lane that failed": Case(
        wanted("a"),
        (starting(0, "b", failures=FAILURES_LIMIT), lane(1)),
        (RetireLane(0, Reason.REVISION_CHANGED),),
    ),
    "deaths of a lane that has served do not halt": Case(
        wanted(), (lane(0, ready=False, failures=9, unready_seconds=99.0), lane(1))
    ),
    "a replica more is started in every lane": Case(
        wanted(decode_replicas=2),
        (lane(0), lane(1)),
        (StartWorker(0, Slot("decode", 1)), StartWorker(1, Slot("decode", 1))),
    ),
    "a replica less is drained": Case(
        wanted(lanes=1), (lane(0, slots=PAIR | {Slot("decode", 1)}),), (RetireWorker(0, Slot("decode", 1)),)
    ),
    "a replica less that is leaving already is waited for": Case(
        wanted(lanes=1), (lane(0, slots=PAIR | {SECOND}, leaving=frozenset([SECOND])),)
    ),
    "a replica that is wanted again comes once the one that leaves its place is gone": Case(
        wanted(lanes=1, decode_replicas=2), (lane(0, slots=PAIR | {SECOND}, leaving=frozenset([SECOND])),)
    ),
    "beside a replica that leaves the other missing ones are started": Case(
        wanted(lanes=1, decode_replicas=3),
        (lane(0, slots=PAIR | {SECOND}, leaving=frozenset([SECOND])),),
        (StartWorker(0, Slot("decode", 2)),),
    ),
    "a lane with a replica that leaves is replaced whole": Case(
        wanted("b", 1, decode_replicas=2),
        (lane(0, slots=PAIR | {SECOND}, leaving=frozenset([SECOND])),),
        (RetireLane(0, Reason.REVISION_CHANGED),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_step(name: str) -> None:
    case = CASES[name]
    step = plan(case.wanted, case.lanes)
    assert step.actions == case.actions
    assert step.halted == case.halted
    assert step.done == case.done


class World:
    """Lanes that obey: a start takes some ticks until ready, a retirement some until gone."""

    def __init__(self, rng: Random, bad: frozenset[str] = frozenset()) -> None:
        self.rng = rng
        self.bad = bad
        self.lanes: dict[int, LaneNow] = {}
        self.left: dict[int, int] = {}
        self.draining: dict[tuple[int, Slot], int] = {}

    def tick(self, want: Wanted) -> bool:
        """One step of the planner and of the world; True when done or halted."""
        step = plan(want, tuple(self.lanes[i] for i in sorted(self.lanes)))
        for action in step.actions:
            self._do(action, want)
        for index in list(self.lanes):
            self._age(index)
        return step.done or bool(step.halted)

    def _do(self, action: Action, want: Wanted) -> None:
        match action:
            case StartLane(index, _):
                assert index not in self.lanes
                self.lanes[index] = starting(index, want.revision, slots=want.slots)
                self.left[index] = self.rng.randint(1, 4)
            case RetireLane(index, _):
                assert not self.lanes[index].retiring
                self.lanes[index] = replace(self.lanes[index], retiring=True)
                self.left[index] = self.rng.randint(1, 4)
            case StartWorker(index, slot, _):
                now = self.lanes[index]
                assert slot not in now.slots, "two workers would have one place"
                self.lanes[index] = replace(now, slots=now.slots | {slot})
            case RetireWorker(index, slot, _):
                now = self.lanes[index]
                assert slot in now.slots - now.leaving
                self.lanes[index] = replace(now, leaving=now.leaving | {slot})
                self.draining[index, slot] = self.rng.randint(1, 4)

    def _age(self, index: int) -> None:
        for slot in self.lanes[index].leaving:
            self._age_worker(index, slot)
        self.left[index] -= 1
        now = self.lanes[index]
        if self.left[index] > 0:
            return
        if now.retiring:
            del self.lanes[index], self.left[index]
            self.draining = {place: left for place, left in self.draining.items() if place[0] != index}
        elif now.revision in self.bad:
            self.lanes[index] = replace(now, failures=now.failures + 1)
        else:
            self.lanes[index] = replace(now, ready=True, was_ready=True)

    def _age_worker(self, index: int, slot: Slot) -> None:
        self.draining[index, slot] -= 1
        if self.draining[index, slot] == 0:
            del self.draining[index, slot]
            now = self.lanes[index]
            self.lanes[index] = replace(now, slots=now.slots - {slot}, leaving=now.leaving - {slot})

    @property
    def serving(self) -> int:
        return sum(one.ready and not one.retiring for one in self.lanes.values())

    def run(self, want: Wanted, *, at_least: int = 0, ticks: int = 300) -> None:
        for _ in range(ticks):
            finished = self.tick(want)
            assert self.serving >= at_least, (want, self.lanes)
            if finished:
                return
        raise AssertionError(f"no fixpoint: {want} {self.lanes}")


shapes = st.tuples(
    st.integers(1, 5), st.integers(0, 5), st.integers(0, 2), st.integers(0, 2**16)
).filter(lambda shape: shape[1] + shape[2] > 0)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(shapes)
def test_a_cold_edit_never_leaves_fewer_ready_lanes_than_allowed(shape: tuple[int, int, int, int]) -> None:
    lanes, unavailable, surge, seed = shape
    world = World(Random(seed))
    first = wanted("a", lanes, max_unavailable=unavailable, max_surge=surge)
    world.run(first)
    world.run(replace(first, revision="b"), at_least=max(0, lanes - unavailable))
    assert {one.revision for one in world.lanes.values()} == {"b"}
    assert sorted(world.lanes) == list(range(lanes))


@settings(max_examples=100, deadline=None)
@given(shapes, st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(1, 3)), max_size=6))
def test_any_sequence_of_edits_ends_at_the_last_one(
    shape: tuple[int, int, int, int], edits: list[tuple[str, int, int]]
) -> None:
    lanes, unavailable, surge, seed = shape
    world = World(rng := Random(seed))
    want = wanted("a", lanes, max_unavailable=unavailable, max_surge=surge)
    for revision, count, replicas in edits:
        for _ in range(rng.randint(0, 5)):
            world.tick(want)
        want = replace(want, revision=revision, lanes=count, decode_replicas=replicas)
    world.run(want)
    assert sorted(world.lanes) == list(range(want.lanes))
    assert {one.revision for one in world.lanes.values()} <= {want.revision}
    assert all(one.slots == want.slots and not one.leaving for one in world.lanes.values())


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 5), st.integers(0, 2**16))
def test_a_bad_revision_costs_at_most_the_budget_and_mending_it_recovers(lanes: int, seed: int) -> None:
    world = World(Random(seed), bad=frozenset("b"))
    good = wanted("a", lanes)
    world.run(good)
    world.run(replace(good, revision="b"), at_least=lanes - 1)
    assert plan(replace(good, revision="b"), tuple(world.lanes.values())).halted
    for _ in range(20):
        world.tick(replace(good, revision="b"))
    assert world.serving == lanes - 1
    world.run(replace(good, revision="c"), at_least=lanes - 2)
    assert world.serving == lanes
