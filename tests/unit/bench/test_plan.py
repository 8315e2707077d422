from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchkit import plan
from benchkit.results import ROOT, BenchError
from ruamel.yaml import YAML

CONFIGURATION = ROOT / "bench" / "path.yaml"


@pytest.fixture(name="config")
def _config() -> plan.Plan:
    return plan.load(CONFIGURATION)


def runs(sittings: list[plan.Sitting]) -> list[tuple[int, str]]:
    return [(sitting.repeat, arm.name) for sitting in sittings for arm in sitting.arms]


def wanted(config: plan.Plan) -> set[tuple[int, str]]:
    return {(repeat, arm.name) for arm in config.arms for repeat in range(arm.repeats or config.repeats)}


def test_every_arm_runs_once_in_every_repeat_that_it_is_meant_for(config: plan.Plan) -> None:
    assert Counter(runs(plan.schedule(config, set()))) == dict.fromkeys(wanted(config), 1)


def test_the_order_differs_between_repeats_and_is_the_same_each_time(config: plan.Plan) -> None:
    sittings = plan.schedule(config, set())
    assert sittings == plan.schedule(config, set())
    orders = {tuple(s.name for s in sittings if s.repeat == repeat) for repeat in range(config.repeats)}
    assert len(orders) == config.repeats


def test_what_is_done_is_left_out_and_the_rest_keeps_its_order(config: plan.Plan) -> None:
    whole = runs(plan.schedule(config, set()))
    done = set(whole[::3])
    assert runs(plan.schedule(config, done)) == [run for run in whole if run not in done]


def test_nothing_is_left_when_all_is_done(config: plan.Plan) -> None:
    assert plan.schedule(config, wanted(config)) == []


def test_arms_whose_ratio_has_a_bound_sit_together_and_share_what_they_can(config: plan.Plan) -> None:
    sittings = [sitting for sitting in plan.schedule(config, set()) if sitting.repeat == 0]
    for ours, theirs in [("c-none", "b-none"), ("c-1", "b-1"), ("c-3", "b-3"), ("c-6", "b-6")]:
        (sitting,) = [s for s in sittings if ours in s.name.split(", ")]
        assert theirs in sitting.name.split(", ")
    (three,) = [s for s in sittings if "c-goodput" in s.name]
    assert {name: [arm.name for arm in arms] for name, arms in three.groups.items()} == {
        "b-3": ["b-3"],
        "c-with-drafter": ["c-3", "c-3-http", "c-goodput"],
    }


def test_in_every_turn_every_arm_answers_its_share_at_each_concurrency(config: plan.Plan) -> None:
    for sitting in plan.schedule(config, set()):
        shares = plan.shares(config, sitting)
        assert shares == plan.shares(config, sitting)
        for arm in sitting.arms:
            for concurrency, requests in config.requests.items():
                turns = config.turns[concurrency] if len(sitting.arms) > 1 else 1
                mine = [s for s in shares if (s.arm, s.concurrency) == (arm, concurrency)]
                assert [s.first for s in mine] == [turn * requests // turns for turn in range(turns)]
                assert sum(s.requests for s in mine) == requests
                assert mine[0].warmup == config.warmup_requests
                assert all(s.warmup == min(config.warmup_requests, concurrency) for s in mine[1:])
        # What is compared is measured right after each other.
        together = [shares[at : at + len(sitting.arms)] for at in range(0, len(shares), len(sitting.arms))]
        assert all(len({(s.concurrency, s.first) for s in block}) == 1 for block in together)
        assert all({s.arm for s in block} == set(sitting.arms) for block in together)


def test_the_committed_configuration_keeps_the_rules_of_a_fair_comparison(config: plan.Plan) -> None:
    arms = {arm.name: arm for arm in config.arms}
    assert config.repeats >= 5
    assert config.engine_args["enable-prefix-caching"] == "false"
    assert set(config.requests) == {1, 4, 16}
    for depth in ("None", 1, 3, 6):
        assert {arm.system for arm in arms.values() if arm.depth == depth} >= {"VllmPair", "StreamServe"}
    assert [arm.name for arm in arms.values() if arm.as_shipped] == ["b-3-as-shipped"]


def test_the_quick_form_is_small_and_of_another_fingerprint(config: plan.Plan) -> None:
    quick = plan.shortened(config)
    assert [sitting.name for sitting in plan.schedule(quick, set())] == ["b-3, c-3"]
    assert quick.fingerprint != config.fingerprint


@dataclass(frozen=True)
class Bad:
    change: dict[str, Any]
    says: str


BAD = {
    "a field that is not known": Bad({"colour": "red"}, "colour"),
    "no repeat": Bad({"repeats": 0}, "repeats"),
    "two arms of one name": Bad({"arms": [{"name": "x", "system": "Plain", "depth": "None"}] * 2}, "same name"),
    "a pair of an arm that is not there": Bad({"pairs": [["c-3", "d-3"]]}, "d-3"),
    "Goodput on vLLM itself": Bad(
        {"arms": [{"name": "x", "system": "VllmPair", "depth": "Goodput"}], "pairs": []}, "only StreamServe"
    ),
    "a place for an arm that is not there": Bad({"together": [["c-3", "d-3"]]}, "d-3"),
    "two places for one arm": Bad({"together": [["c-3", "b-3"], ["c-3"]]}, "c-3 twice"),
    "turns of an arm that takes none": Bad({"together": [["c-none", "a-none"]]}, "a-none has its load"),
    "requests that the turns cannot share": Bad({"requests": {1: 3}}, "3 requests at 1 at once"),
    "turns at a concurrency that is not measured": Bad({"turns": {2: 2}}, "names 2 at once"),
    "a depth that the engines are not built for": Bad(
        {"arms": [{"name": "x", "system": "VllmPair", "depth": 9}], "pairs": []}, "max_depth 6"
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_a_bad_configuration_is_refused_by_name(case: Bad, tmp_path: Path) -> None:
    document = YAML(typ="safe").load(CONFIGURATION.read_text()) | case.change
    file = tmp_path / "path.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump(document, stream)
    with pytest.raises(BenchError, match=case.says):
        plan.load(file)


def test_a_missing_configuration_says_so(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot read path\.yaml"):
        plan.load(tmp_path / "path.yaml")
