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


def test_every_arm_runs_once_in_every_repeat(config: plan.Plan) -> None:
    runs = Counter((group.repeat, arm.name) for group in plan.schedule(config, set()) for arm in group.arms)
    assert runs == {(repeat, arm.name): 1 for repeat in range(config.repeats) for arm in config.arms}


def test_the_order_differs_between_repeats_and_is_the_same_each_time(config: plan.Plan) -> None:
    groups = plan.schedule(config, set())
    assert groups == plan.schedule(config, set())
    orders = {tuple(g.name for g in groups if g.repeat == repeat) for repeat in range(config.repeats)}
    assert len(orders) == config.repeats


def test_what_is_done_is_left_out_and_the_rest_keeps_its_order(config: plan.Plan) -> None:
    whole = [(g.repeat, arm.name) for g in plan.schedule(config, set()) for arm in g.arms]
    done = set(whole[::3])
    left = [(g.repeat, arm.name) for g in plan.schedule(config, done) for arm in g.arms]
    assert left == [run for run in whole if run not in done]


def test_nothing_is_left_when_all_is_done(config: plan.Plan) -> None:
    done = {(repeat, arm.name) for repeat in range(config.repeats) for arm in config.arms}
    assert plan.schedule(config, done) == []


def test_streamserve_with_a_drafter_serves_all_its_depths_with_one_start(config: plan.Plan) -> None:
    groups = [g for g in plan.schedule(config, set()) if g.repeat == 0 and g.name == "c-with-drafter"]
    assert [sorted(arm.name for arm in g.arms) for g in groups] == [["c-1", "c-3", "c-3-http", "c-6", "c-goodput"]]


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
    assert len(plan.schedule(quick, set())) == 2
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
