"""A new speculation setting from the edit to the verdict, on a cluster in memory whose routers record what they see."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from streamserve.contract.goodput import GoodputMinute, LaneGoodput
from streamserve.operator.actions import Apply
from streamserve.operator.canary.memory import ANNOTATION
from streamserve.operator.site import Site

from .cluster import Body, Cluster, Key

MakeBody = Callable[..., Body]
CONFIG: Key = ("ConfigMap", "tiny-config")
ROLLOUT = {"canaryLanes": 1, "holdSeconds": 120, "minRequests": 100, "rollbackBelowPercent": 90}
OLD: dict[str, Any] = {"method": "Ngram", "maxDepth": 6, "policy": "Fixed", "depth": {"fixed": 2}, "rollout": ROLLOUT}
NEW = {**OLD, "policy": "Goodput"}
OFF = {**OLD, "policy": "Off"}
WOBBLE = (0.97, 1.04, 1.0, 0.95, 1.03, 1.02, 0.96, 1.01, 0.99, 1.05)


class Bench:
    """A settled pair of three lanes whose routers see `ratio` of the goodput on lane-0 while a canary is held."""

    def __init__(self, make_body: MakeBody, site: Site) -> None:
        self.make_body = make_body
        self.generation = 0
        self.cluster = Cluster(self._body(OLD), site)
        self.cluster.settle()

    def edit(self, speculation: Body, **more: Any) -> None:
        self.cluster.edit(self._body(speculation, **more))
        self.rest()

    def _body(self, speculation: Body, **more: Any) -> Body:
        self.generation += 1
        return self.make_body({"lanes": 3, "speculation": speculation, **more}, generation=self.generation)

    def rest(self) -> int:
        """Reconcile until nothing is written; how many writes there were."""
        writes = 0
        for _ in range(20):
            made = self.cluster.reconcile()
            writes += made
            if not made:
                return writes
        raise AssertionError(f"it never rests: {self.cluster.decide().actions}")

    def pass_minutes(self, minutes: int, ratio: float = 1.0) -> None:
        """As routers record them, with a reconcile at the end of each."""
        for _ in range(minutes):
            number = int(self.cluster.now // 60)
            config = self.cluster.config
            assert config is not None
            if config.canary is not None and self.cluster.goodput is not None:
                record = GoodputMinute(minute=number, config=config.id, rows=self._rows(number, ratio, config.canary))
                self.cluster.goodput.setdefault("router-a", []).append(record)
            self.cluster.now = 60.0 * (number + 1)
            self.rest()

    def _rows(self, minute: int, ratio: float, canary: Any) -> tuple[LaneGoodput, ...]:
        return tuple(
            LaneGoodput(
                lane=lane,
                workload="chat",
                requests=40,
                requests_within_slo=40,
                tokens_within_slo=round(1_000 * (ratio if lane in canary.lanes else 1.0) * WOBBLE[(minute + n) % 10]),
                engine_seconds=10.0,
            )
            for n, lane in enumerate(("lane-0", "lane-1", "lane-2"))
        )

    @property
    def obeyed(self) -> dict[str, str]:
        """The policy of each lane."""
        config = self.cluster.config
        assert config is not None
        return {lane: config.for_lane(lane).speculation.policy.value for lane in ("lane-0", "lane-1", "lane-2")}

    @property
    def applied(self) -> tuple[str, str]:
        found = self.cluster.condition("ConfigApplied")
        return found["status"], found["reason"]

    @property
    def note(self) -> Body:
        notes = self.cluster.objects[CONFIG]["metadata"].get("annotations", {})
        return json.loads(notes[ANNOTATION]) if ANNOTATION in notes else {}

    def restart(self) -> None:
        """Another process: it knows what the API server knows, and has read no record yet."""
        self.cluster.decided, self.cluster.goodput = None, None


@pytest.fixture
def bench(make_body: MakeBody, site: Site) -> Bench:
    return Bench(make_body, site)


def everywhere(policy: str) -> dict[str, str]:
    return dict.fromkeys(("lane-0", "lane-1", "lane-2"), policy)


ONE = {**everywhere("Fixed"), "lane-0": "Goodput"}


def test_a_new_setting_is_tried_on_one_lane_and_no_pod_is_touched(bench: Bench) -> None:
    pods = {pod.name: pod.uid for pod in bench.cluster.pods}
    bench.edit(NEW)
    assert bench.obeyed == ONE
    assert bench.applied == ("False", "CanaryHolding")
    assert "6 of 7" not in bench.cluster.condition("ConfigApplied")["message"]
    assert "7 of 7 have applied generation 2" in bench.cluster.condition("ConfigApplied")["message"]
    assert bench.note["state"] == "Holding"
    assert {pod.name: pod.uid for pod in bench.cluster.pods} == pods


VERDICTS = {
    "as good as the others it goes to all lanes": (1.0, "Goodput", ("True", "Applied"), ""),
    "worse it comes back": (0.7, "Fixed", ("False", "CanaryWorse"), "RolledBack"),
    "on the border it comes back after ten holds": (0.9, "Fixed", ("False", "CanaryInconclusive"), "RolledBack"),
}


@pytest.mark.parametrize(("ratio", "policy", "applied", "note"), VERDICTS.values(), ids=VERDICTS)
def test_at_the_end(bench: Bench, ratio: float, policy: str, applied: tuple[str, str], note: str) -> None:
    bench.edit(NEW)
    began = bench.cluster.config
    bench.pass_minutes(21, ratio)
    assert (bench.obeyed, bench.applied) == (everywhere(policy), applied)
    assert bench.note.get("state", "") == note
    assert bench.cluster.config is not None
    assert began is not None
    assert bench.cluster.config.id.order == (2, began.id.step + 1), "one step, and then rest"


def test_what_came_back_stays_back_when_lanes_are_scaled_and_is_tried_again_when_it_is_another(bench: Bench) -> None:
    bench.edit(NEW)
    bench.pass_minutes(21, 0.7)
    bench.edit(NEW, **{"update.drainSeconds": 20})
    assert (bench.obeyed, bench.applied) == (everywhere("Fixed"), ("False", "CanaryWorse"))
    bench.edit({**NEW, "probePercent": 5})
    assert (bench.obeyed, bench.applied) == (ONE, ("False", "CanaryHolding"))


def test_policy_off_passes_a_hold_at_once_and_everywhere(bench: Bench) -> None:
    bench.edit(NEW)
    bench.pass_minutes(1)
    bench.edit(OFF)
    assert (bench.obeyed, bench.applied) == (everywhere("Off"), ("True", "Applied"))
    assert bench.note == {}


def test_an_operator_that_restarts_goes_on_with_the_hold_and_judges_nobody_before_it_has_read(bench: Bench) -> None:
    bench.edit(NEW)
    bench.pass_minutes(4)
    before, records = bench.note, bench.cluster.goodput
    bench.restart()
    bench.cluster.now += 3_600
    bench.rest()
    assert (bench.note, bench.obeyed, bench.applied) == (before, ONE, ("False", "CanaryHolding"))
    assert "not been read" in bench.cluster.condition("ConfigApplied")["message"]
    bench.cluster.now -= 3_600
    bench.cluster.goodput = records
    bench.pass_minutes(16)
    assert (bench.obeyed, bench.applied) == (everywhere("Goodput"), ("True", "Applied"))


def test_a_configmap_that_a_hand_deletes_or_edits_in_a_hold_comes_back_with_it(bench: Bench) -> None:
    bench.edit(NEW)
    bench.pass_minutes(2)
    before = copy.deepcopy({key: bench.cluster.objects[CONFIG][key] for key in ("data",)})
    note = bench.note
    del bench.cluster.objects[CONFIG]
    assert bench.rest() == 1
    assert (bench.cluster.objects[CONFIG]["data"], bench.note) == (before["data"], note)
    bench.cluster.objects[CONFIG]["data"] = {}
    bench.cluster.objects[CONFIG]["metadata"].pop("annotations")
    assert bench.rest() == 1
    assert (bench.cluster.objects[CONFIG]["data"], bench.note) == (before["data"], note)


def test_a_memory_that_was_lost_altogether_does_not_fall_behind_what_processes_have_applied(bench: Bench) -> None:
    bench.edit(NEW)
    held = bench.cluster.config
    assert held is not None
    del bench.cluster.objects[CONFIG]
    bench.restart()
    bench.rest()
    assert bench.cluster.config is not None
    assert bench.cluster.config.id.supersedes(held.id)
    assert (bench.obeyed, bench.applied) == (everywhere("Goodput"), ("True", "Applied"))


def test_a_pair_that_is_paused_in_a_hold_is_not_judged_until_it_goes_on(bench: Bench) -> None:
    bench.edit(NEW)
    bench.edit(NEW, paused=True)
    before = copy.deepcopy(bench.cluster.objects[CONFIG])
    bench.pass_minutes(30, 0.7)
    assert bench.cluster.objects[CONFIG] == before
    assert bench.applied == ("False", "CanaryHolding")
    assert "paused" in bench.cluster.condition("ConfigApplied")["message"]
    bench.edit(NEW)
    bench.pass_minutes(1, 0.7)
    assert (bench.obeyed, bench.applied) == (everywhere("Fixed"), ("False", "CanaryWorse"))


def told(bench: Bench) -> tuple[tuple[str, str], int, Body]:
    """(status and reason, the generation that they are about, how far the configuration has come)."""
    found = bench.cluster.condition("ConfigApplied")
    return bench.applied, found["observedGeneration"], bench.cluster.body["status"]["config"]


def test_a_settled_pair_that_is_paused_has_applied_what_it_asks_for(bench: Bench) -> None:
    before = copy.deepcopy(bench.cluster.objects[CONFIG])
    bench.edit(OLD, paused=True)
    assert told(bench) == (("True", "Applied"), 2, {"generation": 1, "appliedBy": 7, "of": 7})
    assert bench.cluster.objects[CONFIG] == before


def test_what_is_asked_for_in_a_pause_waits_and_is_tried_when_the_pair_goes_on(bench: Bench) -> None:
    bench.edit(NEW, paused=True)
    assert told(bench) == (("False", "Paused"), 2, {"generation": 1, "appliedBy": 7, "of": 7})
    assert "7 of 7 have applied generation 1" in bench.cluster.condition("ConfigApplied")["message"]
    assert bench.obeyed == everywhere("Fixed")
    bench.edit(OLD, paused=True, **{"slo.default.tpotMilliseconds": 51})
    assert bench.applied == ("False", "Paused")
    bench.edit(NEW)
    assert (bench.obeyed, bench.applied) == (ONE, ("False", "CanaryHolding"))


def test_what_came_back_stays_back_in_a_pause_with_its_reason(bench: Bench) -> None:
    bench.edit(NEW)
    bench.pass_minutes(21, 0.7)
    said = bench.cluster.condition("ConfigApplied")["message"]
    for lanes in (3, 2):
        bench.edit(NEW, paused=True, lanes=lanes)
        assert told(bench)[:2] == (("False", "CanaryWorse"), bench.generation)
        assert bench.cluster.condition("ConfigApplied")["message"] == said
    bench.edit(OFF, paused=True)
    assert bench.applied == ("False", "Paused"), "nothing is written, not even that"
    bench.edit(OLD, paused=True)
    assert bench.applied == ("True", "Applied"), "the edit is taken back: what it asks for is in force"
    bench.edit(NEW)
    assert (bench.obeyed, bench.applied) == (everywhere("Fixed"), ("False", "CanaryWorse"))


def test_a_pair_that_was_never_made_has_applied_nothing_while_it_is_paused(make_body: MakeBody, site: Site) -> None:
    cluster = Cluster(make_body({"lanes": 0, "paused": True}), site)
    cluster.settle()
    found = cluster.condition("ConfigApplied")
    assert (found["status"], found["reason"], cluster.objects) == ("False", "Paused", {})


def test_a_hold_writes_its_status_once_a_minute_at_most_and_nothing_else(bench: Bench) -> None:
    bench.edit(NEW)
    bench.pass_minutes(2)
    statuses = [copy.deepcopy(bench.cluster.body["status"])]
    for _ in range(59):
        bench.cluster.now += 1
        again = bench.cluster.decide().again_seconds
        assert again is not None
        assert again <= 60
        assert bench.cluster.reconcile() == 0
        if bench.cluster.body["status"] != statuses[-1]:
            statuses.append(copy.deepcopy(bench.cluster.body["status"]))
    assert len(statuses) <= 2, [each["conditions"][5]["message"] for each in statuses]


def test_a_crash_between_the_decision_and_its_write_asks_the_same_again(bench: Bench) -> None:
    bench.cluster.edit(bench._body(NEW))
    assert [action.name for action in bench.cluster.decide().actions if isinstance(action, Apply)] == ["tiny-config"]
    bench.cluster.reconcile(crash_after=0)
    bench.rest()
    assert (bench.obeyed, bench.note["first"]) == (ONE, [2, 0])


def test_a_pair_with_canaries_scales_to_none_and_back_and_tries_the_next_setting_on_the_first_lane(
    bench: Bench,
) -> None:
    bench.edit(OLD, lanes=0)
    bench.cluster.settle()
    assert (bench.cluster.serving, bench.applied) == (set(), ("True", "Applied"))
    bench.edit(OLD)
    bench.cluster.settle()
    bench.edit(NEW)
    assert (bench.obeyed, bench.applied) == (ONE, ("False", "CanaryHolding"))


def test_a_hold_ends_where_scaling_down_leaves_nothing_to_compare_with(bench: Bench) -> None:
    bench.edit(NEW)
    bench.edit(NEW, lanes=1)
    bench.cluster.settle()
    assert (bench.obeyed, bench.applied) == (everywhere("Fixed"), ("False", "CanaryInconclusive"))


def test_whether_workers_draft_is_told_by_what_is_in_force_on_their_lane(bench: Bench) -> None:
    def drafts() -> tuple[str, str, str]:
        found = bench.cluster.condition("SpeculationEffective")
        return found["status"], found["reason"], found["message"]

    bench.edit(OFF)
    assert drafts()[:2] == ("False", "SpeculationOff")
    bench.edit(NEW)
    assert bench.obeyed == {**everywhere("Off"), "lane-0": "Goodput"}
    assert drafts() == ("True", "Drafting", "1 decode workers draft, 2 are of lanes with policy Off")
    bench.pass_minutes(21, 0.7)
    assert (bench.obeyed, bench.applied) == (everywhere("Off"), ("False", "CanaryWorse"))
    assert drafts()[:2] == ("False", "SpeculationOff")
    bench.edit({**NEW, "rollout": {**ROLLOUT, "canaryLanes": 0}})
    assert drafts() == ("True", "Drafting", "3 decode workers draft")
