"""When a new speculation setting goes to all lanes, to a few, stays there, or comes back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.runtime_config import Canary, RuntimeConfig, encode
from streamserve.contract.streampair.policies import Rollout
from streamserve.operator.canary.law import (
    AllReason,
    Hold,
    Outcome,
    Outdated,
    Promote,
    RollBack,
    StayBack,
    ToAll,
    Verdict,
    Wanted,
    decide,
)
from streamserve.operator.canary.memory import Holding, Memory, RollBackReason, RolledBack, Settled, notes_of, recall

from .builders import NEW, OFF, OLD, OTHER, RULES, config, record, row, traffic, wanted

START = 6_000.0
SETTLED = Memory(config(OLD), Settled())
Records = dict[str, Sequence[GoodputMinute]]


def held() -> Memory:
    """lane-0 tries NEW since START, under generation 2."""
    return decide(wanted(), SETTLED, {}, START).memory


def back() -> Memory:
    return decide(wanted(), held(), traffic(0.7), START + 720).memory


def where(outcome: Outcome) -> str:
    """The configuration in short: generation.step, what control obeys, what which lanes try."""
    names = {OLD: "old", NEW: "new", OTHER: "other", OFF: "off"}
    made = outcome.memory.config
    said = f"{made.id.generation}.{made.id.step} {names[made.speculation]}"
    if made.canary is not None:
        said += f", {' '.join(made.canary.lanes)} {names[made.canary.speculation]}"
    return said


@dataclass(frozen=True, kw_only=True)
class Case:
    wanted: Wanted = field(default_factory=wanted)
    memory: Memory | None = field(default_factory=held)
    records: Records | None = field(default_factory=dict)
    after: float = 0.0
    verdict: type[Verdict] | Verdict
    where: str
    says: str = ""


CASES = {
    "the first configuration of a pair goes to all lanes: there is nothing to compare it with": Case(
        memory=None, verdict=ToAll(AllReason.FIRST), where="2.0 new"
    ),
    "a setting that is new goes to the first lane, and the others keep the old one": Case(
        memory=SETTLED, verdict=Hold, where="2.0 old, lane-0 new", says="0 requests there"
    ),
    "without a rollout block all lanes change at once": Case(
        wanted=wanted(rules=Rollout()), memory=SETTLED, verdict=ToAll(AllReason.NO_CANARY), where="2.0 new"
    ),
    "a hold of 0 s is none": Case(
        wanted=wanted(rules=RULES.model_copy(update={"hold_seconds": 0})),
        memory=SETTLED,
        verdict=ToAll(AllReason.NO_CANARY),
        where="2.0 new",
    ),
    "as many canaries as lanes leave one lane to compare with": Case(
        wanted=wanted(rules=RULES.model_copy(update={"canary_lanes": 5})),
        memory=SETTLED,
        verdict=Hold,
        where="2.0 old, lane-0 lane-1 new",
    ),
    "one lane has nothing to compare with": Case(
        wanted=wanted(lanes=1), memory=SETTLED, verdict=ToAll(AllReason.NOTHING_TO_COMPARE), where="2.0 new"
    ),
    "a pair without lanes changes at once": Case(
        wanted=wanted(lanes=0), memory=SETTLED, verdict=ToAll(AllReason.NOTHING_TO_COMPARE), where="2.0 new"
    ),
    "an edit that leaves speculation alone is no canary": Case(
        wanted=wanted(OLD), memory=SETTLED, verdict=ToAll(AllReason.NOTHING_NEW), where="2.0 old"
    ),
    "before holdSeconds a canary that is plainly worse is still held": Case(
        records=traffic(0.5), after=119, verdict=Hold, where="2.0 old, lane-0 new", says="bound nothing yet"
    ),
    "before minRequests a canary that is plainly worse is still held": Case(
        wanted=wanted(rules=RULES.model_copy(update={"min_requests": 500})),
        memory=decide(wanted(rules=RULES.model_copy(update={"min_requests": 500})), SETTLED, {}, START).memory,
        records=traffic(0.5),
        after=720,
        verdict=Hold,
        where="2.0 old, lane-0 new",
        says="500 requests on each side",
    ),
    "a canary that is as good as the others is promoted": Case(
        records=traffic(1.0), after=720, verdict=Promote, where="2.1 new"
    ),
    "one that is 20 percent worse comes back": Case(
        records=traffic(0.8), after=720, verdict=RollBack, where="2.1 old", says="80.0% of the other lanes'"
    ),
    "one that is on the border is held": Case(
        records=traffic(0.9), after=720, verdict=Hold, where="2.0 old, lane-0 new"
    ),
    "one that is on the border comes back when ten holds are over": Case(
        records=traffic(0.9), after=1_200, verdict=RollBack, where="2.1 old"
    ),
    "without any traffic it is held": Case(after=1_199, verdict=Hold, where="2.0 old, lane-0 new"),
    "without any traffic it comes back when ten holds are over": Case(
        after=1_200, verdict=RollBack, where="2.1 old", says="0 requests there and 0 on the other lanes"
    ),
    "evidence that decides is heard even when the operator was away past ten holds": Case(
        records=traffic(1.0), after=9_999, verdict=Promote, where="2.1 new"
    ),
    "before its records were read nobody is judged, however long ago ten holds were over": Case(
        records=None, after=99_999, verdict=Hold, where="2.0 old, lane-0 new", says="have not been read yet"
    ),
    "policy Off does not wait for records": Case(
        wanted=wanted(OFF, 3), records=None, after=1, verdict=ToAll(AllReason.KILL_SWITCH), where="3.0 off"
    ),
    "records of the generation before the hold are not evidence": Case(
        records=traffic(1.0, generation=1), after=720, verdict=Hold, where="2.0 old, lane-0 new", says="0 requests"
    ),
    "policy Off ends a hold at once, on every lane": Case(
        wanted=wanted(OFF, 3), after=1, verdict=ToAll(AllReason.KILL_SWITCH), where="3.0 off"
    ),
    "policy Off passes a canary by": Case(
        wanted=wanted(OFF), memory=SETTLED, verdict=ToAll(AllReason.KILL_SWITCH), where="2.0 off"
    ),
    "policy Off passes a rollback by": Case(
        wanted=wanted(OFF, 3), memory=back(), verdict=ToAll(AllReason.KILL_SWITCH), where="3.0 off"
    ),
    "a new generation that asks the same goes on with the hold and its evidence": Case(
        wanted=wanted(generation=3, lanes=5),
        records=traffic(1.0),
        after=720,
        verdict=Promote,
        where="3.0 new",
    ),
    "a new generation that asks the same and can not be judged yet carries the canary along": Case(
        wanted=wanted(generation=3, lanes=5), after=60, verdict=Hold, where="3.0 old, lane-0 new", says="for 60 s"
    ),
    "a new generation with another setting starts a hold of its own, against what control obeys": Case(
        wanted=wanted(OTHER, 3), after=600, verdict=Hold, where="3.0 old, lane-0 other", says="for 0 s"
    ),
    "a new generation with other rules starts its hold again": Case(
        wanted=wanted(generation=3, rules=RULES.model_copy(update={"rollback_below_percent": 50})),
        after=600,
        verdict=Hold,
        where="3.0 old, lane-0 new",
        says="for 0 s",
    ),
    "pods of another revision start the hold again": Case(
        wanted=wanted(generation=3, revision="r2"), after=600, verdict=Hold, where="3.0 old, lane-0 new", says="for 0 s"
    ),
    "an edit taken back during its hold ends it": Case(
        wanted=wanted(OLD, 3), after=60, verdict=ToAll(AllReason.NOTHING_NEW), where="3.0 old"
    ),
    "canaryLanes set to 0 during a hold lets all lanes follow": Case(
        wanted=wanted(generation=3, rules=RULES.model_copy(update={"canary_lanes": 0})),
        after=60,
        verdict=ToAll(AllReason.NO_CANARY),
        where="3.0 new",
    ),
    "an older generation from a stale cache changes nothing": Case(
        wanted=wanted(OLD, 1), after=60, verdict=Outdated(), where="2.0 old, lane-0 new"
    ),
    "scaled down to the canary alone it comes back, for it can no more be judged": Case(
        wanted=wanted(generation=3, lanes=1), after=60, verdict=RollBack, where="3.0 old", says="no lane is left"
    ),
    "what came back stays back when asked for again": Case(
        wanted=wanted(generation=3, lanes=4), memory=back(), verdict=StayBack, where="3.0 old", says="70.0% of"
    ),
    "what came back is tried again under other rules": Case(
        wanted=wanted(generation=3, rules=RULES.model_copy(update={"hold_seconds": 600})),
        memory=back(),
        verdict=Hold,
        where="3.0 old, lane-0 new",
    ),
    "what came back goes to all lanes when no canary is asked for": Case(
        wanted=wanted(generation=3, rules=Rollout()),
        memory=back(),
        verdict=ToAll(AllReason.NO_CANARY),
        where="3.0 new",
    ),
    "a memory of a pair of the same name that was deleted is none": Case(
        memory=Memory(
            config(OLD, 9).model_copy(update={"id": config(OLD, 9).id.model_copy(update={"uid": "former"})}), Settled()
        ),
        verdict=ToAll(AllReason.FIRST),
        where="2.0 new",
    ),
    "a clock that was set back is no elapsed time": Case(
        records=traffic(1.0), after=-500, verdict=Hold, where="2.0 old, lane-0 new", says="for 0 s"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_verdict(case: Case) -> None:
    found = decide(case.wanted, case.memory, case.records, START + case.after)
    if isinstance(case.verdict, type):
        assert isinstance(found.verdict, case.verdict), found.verdict
    else:
        assert found.verdict == case.verdict
    assert where(found) == case.where
    if case.says:
        assert found.not_applied is not None
        assert case.says in found.not_applied[1]


REASONS = {
    "while it holds": (wanted(), {}, 60.0, "CanaryHolding"),
    "when it was worse": (wanted(), traffic(0.7), 720.0, "CanaryWorse"),
    "when nothing could be told": (wanted(), {}, 1_200.0, "CanaryInconclusive"),
    "when it was promoted": (wanted(), traffic(1.1), 720.0, None),
    "when it was switched off": (wanted(OFF, 3), {}, 60.0, None),
}


@pytest.mark.parametrize(("asked", "records", "after", "reason"), REASONS.values(), ids=REASONS)
def test_the_condition_says_why_a_generation_is_not_applied(
    asked: Wanted, records: Records, after: float, reason: str | None
) -> None:
    found = decide(asked, held(), records, START + after).not_applied
    assert (None if found is None else found[0]) == reason


def test_a_rollback_is_told_in_the_same_words_at_every_later_reconcile() -> None:
    first = decide(wanted(), held(), traffic(0.7), START + 720)
    later = decide(wanted(), first.memory, {}, START + 9_000)
    assert later.not_applied == first.not_applied
    assert later.memory == first.memory


def test_what_control_obeys_is_cut_to_engines_that_are_built_for_less() -> None:
    asked = wanted(OTHER.model_copy(update={"max_depth": 2}), max_depth=2)
    made = decide(asked, SETTLED, {}, START).memory.config
    assert (made.speculation.max_depth, made.speculation.fixed_depth) == (2, 2)


def test_a_memory_that_was_lost_does_not_fall_behind_what_processes_have_echoed() -> None:
    found = decide(wanted(), None, {}, START, echoed=(2, 4))
    assert found.memory.config.id.order == (2, 5)
    assert decide(wanted(), found.memory, {}, START, echoed=(2, 5)).memory == found.memory


def test_everything_else_that_is_hot_goes_to_all_lanes_whatever_becomes_of_the_canary() -> None:
    asked = wanted(generation=3)
    changed = asked.config.model_copy(update={"served_names": ("tiny", "small")})
    asked = Wanted(config=changed, rules=RULES, lanes=asked.lanes, revision="r1", max_depth=6)
    for memory in (held(), back()):
        assert decide(asked, memory, {}, START + 60).memory.config.served_names == ("tiny", "small")


def test_an_operator_that_restarts_in_the_middle_goes_on_where_the_other_was() -> None:
    before = held()
    again = recall(encode(before.config), notes_of(before.state))
    assert again == before
    assert decide(wanted(), again, traffic(1.0), START + 720).verdict == Promote(
        decide(wanted(), before, traffic(1.0), START + 720).verdict.detail  # type: ignore[union-attr]
    )


def test_between_two_looks_the_figures_stay_whatever_arrives() -> None:
    looks = [decide(wanted(), held(), traffic(0.9, minutes), START + after) for minutes, after in ((4, 240), (6, 359))]
    assert looks[0].comparison == looks[1].comparison
    assert looks[0].comparison is not None
    assert looks[0].comparison.minutes == 3
    later = decide(wanted(), held(), traffic(0.9, 6), START + 360).comparison
    assert later is not None
    assert later.minutes == 5


def test_a_record_has_time_to_arrive_before_it_is_missed() -> None:
    """Minute 103 ends at the second look: its record may not be there yet, so it waits for the third."""
    with_it, without = traffic(1.0, 4), traffic(1.0, 3)
    assert decide(wanted(), held(), with_it, START + 240) == decide(wanted(), held(), without, START + 240)


class Life(RuleBasedStateMachine):
    """Edits, scaling, traffic, time and restarts in any order."""

    @initialize()
    def begin(self) -> None:
        self.now, self.generation, self.speculation, self.lanes, self.rules = START, 1, OLD, 3, RULES
        self.ratio, self.minute, self.records = 1.0, 0, [record(0)]
        self.memory: Memory | None = None
        self.seen: list[RuntimeConfig] = []
        self.last: Outcome | None = None
        self.reconcile()

    def wanted(self) -> Wanted:
        return wanted(self.speculation, self.generation, lanes=self.lanes, rules=self.rules)

    @rule()
    def reconcile(self) -> None:
        before = self.memory
        self.last = decide(self.wanted(), before, {"router-0": tuple(self.records)}, self.now)
        self.memory, made = self.last.memory, self.last.memory.config
        if not self.seen or made.id != self.seen[-1].id:
            self.seen.append(made)
        self.check_verdict(before)

    def check_verdict(self, before: Memory | None) -> None:
        assert self.last is not None
        verdict, found = self.last.verdict, self.last.comparison
        if isinstance(verdict, Promote) or (isinstance(verdict, RollBack) and verdict.reason is RollBackReason.WORSE):
            assert before is not None
            assert isinstance(before.state, Holding)
            assert found is not None
            assert self.now - before.state.since_seconds >= self.rules.hold_seconds
            assert found.requests >= self.rules.min_requests
        if isinstance(verdict, Hold) and isinstance(self.last.memory.state, Holding):
            assert self.now - self.last.memory.state.since_seconds < 10 * self.rules.hold_seconds
            assert 0 < verdict.again_seconds <= 60

    @rule(speculation=st.sampled_from([OLD, NEW, OTHER, OFF]))
    def edit(self, speculation: object) -> None:
        self.speculation, self.generation = speculation, self.generation + 1  # type: ignore[assignment]
        self.reconcile()

    @rule(lanes=st.integers(0, 4))
    def scale(self, lanes: int) -> None:
        self.lanes, self.generation = lanes, self.generation + 1
        self.reconcile()

    @rule(canaries=st.integers(0, 3), hold=st.sampled_from([0, 60, 120]))
    def change_rules(self, canaries: int, hold: int) -> None:
        self.rules = RULES.model_copy(update={"canary_lanes": canaries, "hold_seconds": hold})
        self.generation += 1
        self.reconcile()

    @rule(minutes=st.integers(1, 15), ratio=st.sampled_from([0.7, 0.9, 1.0]))
    def serve(self, minutes: int, ratio: float) -> None:
        """Time passes with traffic; the operator looks only now and then."""
        assert self.memory is not None
        made, self.minute = self.memory.config, int(self.now // 60)
        for _ in range(minutes):
            rows = [
                row(f"lane-{lane}", 100 * ratio if made.canary and f"lane-{lane}" in made.canary.lanes else 100.0)
                for lane in range(self.lanes)
            ]
            self.records.append(record(self.minute, *rows, generation=made.id.generation, step=made.id.step))
            self.minute += 1
        self.now += 60 * minutes
        self.reconcile()

    @rule(seconds=st.integers(1, 2_000))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.reconcile()

    @rule()
    def restart(self) -> None:
        """All that is known goes through the ConfigMap."""
        assert self.memory is not None
        assert recall(encode(self.memory.config), notes_of(self.memory.state)) == self.memory

    @precondition(lambda self: self.generation > 1)
    @rule()
    def read_a_stale_cache(self) -> None:
        older = wanted(OTHER, self.generation - 1, lanes=self.lanes, rules=self.rules)
        assert decide(older, self.memory, {}, self.now).memory == self.memory

    @invariant()
    def a_second_look_at_the_same_moment_changes_nothing(self) -> None:
        if self.memory is not None:
            again = decide(self.wanted(), self.memory, {"router-0": tuple(self.records)}, self.now)
            assert again.memory == self.memory

    @invariant()
    def each_configuration_supersedes_all_before_it(self) -> None:
        orders = [made.id.order for made in self.seen]
        assert all(one < two for one, two in itertools.pairwise(orders))

    @invariant()
    def policy_off_is_on_every_lane(self) -> None:
        if self.memory is not None and self.speculation == OFF:
            assert (self.memory.config.speculation, self.memory.config.canary) == (OFF, None)

    @invariant()
    def a_canary_always_has_somebody_to_be_compared_with(self) -> None:
        if self.memory is not None and (canary := self.memory.config.canary) is not None:
            assert {f"lane-{lane}" for lane in range(self.lanes)} - set(canary.lanes)

    @invariant()
    def lanes_obey_what_is_wanted_or_what_was(self) -> None:
        if self.memory is not None and isinstance(self.memory.state, Settled):
            assert self.memory.config.speculation == self.speculation


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


NOTES = st.dictionaries(
    st.just("streamserve.io/speculation-rollout"),
    st.text(max_size=40)
    | st.sampled_from(
        [
            '{"state": "Holding"}',
            '{"state": "Holding", "question": "q", "sinceSeconds": "soon", "first": [1, 0]}',
            '{"state": "Holding", "question": "q", "sinceSeconds": 1e999, "first": [1, 0]}',
            '{"state": "Holding", "question": "q", "sinceSeconds": 5, "first": [1]}',
            '{"state": "RolledBack", "question": "q", "reason": "Bored", "detail": ""}',
            '[{"state": "Holding"}]',
            '{"state": "Elsewhere"}',
        ]
    ),
)


@given(notes=NOTES, canary=st.booleans())
def test_an_annotation_that_a_hand_has_spoilt_is_as_good_as_none(notes: dict[str, str], canary: bool) -> None:
    made = config(OLD, 2)
    if canary:
        made = made.model_copy(update={"canary": Canary(lanes=("lane-0",), speculation=NEW)})
    found = recall(encode(made), notes)
    assert found == Memory(made, Settled())
    again = decide(wanted(generation=2), found, {}, START)
    assert isinstance(again.verdict, Hold)
    assert isinstance(again.memory.state, Holding)


HOLDING = Holding("q", START, (2, 0))
BACK = RolledBack("q", RollBackReason.WORSE, "worse")


@pytest.mark.parametrize("state, canary", [(HOLDING, False), (BACK, True)], ids=["a hold", "a rollback"])
def test_what_does_not_fit_the_configuration_is_not_believed(state: Holding | RolledBack, canary: bool) -> None:
    tried = Canary(lanes=("lane-0",), speculation=NEW) if canary else None
    made = config(OLD, 2).model_copy(update={"canary": tried})
    assert recall(encode(made), notes_of(state)) == Memory(made, Settled())


@pytest.mark.parametrize("data", [None, "", "{}", "not JSON", b"\xff"], ids=repr)
def test_a_configuration_that_cannot_be_read_is_no_memory(data: str | bytes | None) -> None:
    assert recall(data, {}) is None


def test_a_rollback_is_remembered_word_for_word() -> None:
    state = RolledBack("q", RollBackReason.WORSE, "goodput is 70 % of the other lanes'")
    made = config(OLD, 2, 1)
    assert recall(encode(made), notes_of(state)) == Memory(made, state)
