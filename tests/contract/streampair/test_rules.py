"""Every rule of the StreamPair against the table of good and bad objects in cases.yaml."""

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from streamserve.contract.streampair import StreamPair, read, releases, rules
from streamserve.contract.streampair.rule import Finding
from streamserve.contract.streampair.rules_volumes import OWNED_VOLUMES

TABLE: dict[str, Any] = YAML(typ="safe").load(Path(__file__).with_name("cases.yaml"))


def merged(base: Any, change: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return copy.deepcopy(change)
    return {**base, **{key: merged(base.get(key), value) for key, value in change.items()}}


def pair_of(case: dict[str, Any]) -> StreamPair:
    change = {key: case[key] for key in ("metadata", "spec") if key in case}
    return StreamPair.model_validate(merged(TABLE["base"], change), by_alias=True, by_name=False)


def findings(pair: StreamPair) -> list[Finding]:
    return [*rules.check(pair), *releases.check(pair)]


@pytest.mark.parametrize("name", TABLE["good"])
def test_is_accepted(name: str) -> None:
    assert [str(finding) for finding in findings(pair_of(TABLE["good"][name]))] == []


@pytest.mark.parametrize("name", TABLE["bad"])
def test_is_refused_by_its_rule_at_its_place(name: str) -> None:
    case = TABLE["bad"][name]
    hit = [finding for finding in findings(pair_of(case)) if finding.rule == case["rule"]]
    assert case["at"] in [str(finding).split(": ")[0] for finding in hit]


@pytest.mark.parametrize("name", TABLE["malformed"])
def test_is_refused_by_the_type_of_its_field(name: str) -> None:
    case = TABLE["malformed"][name]
    problems = read(json.dumps(merged(TABLE["base"], {"spec": case["spec"]}))).problems
    assert case["at"] in [problem.path for problem in problems]
    assert not any("text like" in problem.message for problem in problems)


DEEP: dict[str, Any] = {}
for _ in range(20):
    DEEP = {"x": DEEP}


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ({"name": "v", **{f"x{number}": 1 for number in range(64)}}, "must have at most 64 entries"),
        ({"name": "v", **DEEP}, "is nested more than 16 deep"),
    ],
    ids=["wide", "deep"],
)
def test_a_volume_is_open_within_bounds(volume: dict[str, Any], words: str) -> None:
    template = {"spec": {"prefill": {"template": {"volumes": [volume]}}}}
    (problem,) = read(json.dumps(merged(TABLE["base"], template))).problems
    assert problem.path == "spec.prefill.template.volumes[0]"
    assert problem.message.startswith(words)


@pytest.mark.parametrize("name", ["cache", *OWNED_VOLUMES[2:]])
def test_a_mount_without_its_volume_is_told_what_can_be_done(name: str) -> None:
    """And once it is done, nothing is said."""
    mount = {"name": name, "mountPath": "/place"}
    (finding,) = findings(pair_of({"spec": {"router": {"template": {"volumeMounts": [mount]}}}}))
    told, ours = finding.message.split("under another name if it is one of ")
    assert told == f"'{name}' is no volume of this template: add it to volumes, "
    added = f"my-{name}" if name in ours.split(", ") else name
    template = {"volumes": [{"name": added, "emptyDir": {}}], "volumeMounts": [{**mount, "name": added}]}
    assert findings(pair_of({"spec": {"router": {"template": template}}})) == []


@pytest.mark.parametrize("name", [n for n, case in TABLE["bad"].items() if case["rule"].startswith("release-")])
def test_what_is_not_built_says_so(name: str) -> None:
    case = TABLE["bad"][name]
    hit = [finding for finding in findings(pair_of(case)) if finding.rule == case["rule"]]
    assert all("not in this release" in finding.message for finding in hit)


def test_every_rule_is_hit_by_two_bad_objects_and_every_bad_object_names_a_rule() -> None:
    known = {rule.id for rule in (*rules.RULES, *releases.UNBUILT)}
    hits = Counter(case["rule"] for case in TABLE["bad"].values())
    assert {rule: hits[rule] for rule in known if hits[rule] < 2} == {}
    assert set(hits) == known


def test_every_row_is_hit_at_every_part_of_the_spec_where_it_stands() -> None:
    pairs = [pair_of(case) for case in TABLE["bad"].values()]
    idle = [
        (rule.id, rule.scope)
        for rule in (*rules.RULES, *releases.UNBUILT)
        if not any(True for pair in pairs for _ in rule.findings(pair))
    ]
    assert idle == []


@pytest.mark.parametrize("rule", [*rules.RULES, *releases.UNBUILT], ids=lambda rule: f"{rule.id} {rule.scope}")
def test_each_row_of_the_table_holds_for_the_base_object(rule: Any) -> None:
    assert list(rule.findings(pair_of({}))) == []


def test_messages_say_what_to_do() -> None:
    verbs: tuple[str, ...] = (
        "use ",
        "remove",
        "keep one",
        "lower",
        "raise",
        "change",
        "write ",
        "set ",
        "make ",
        "move ",
        "choose",
    )
    verbs += ("sort", "add ", "merge", "give", "correct", "name another", "leave ")
    for name, case in TABLE["bad"].items():
        for finding in findings(pair_of(case)):
            assert any(verb in finding.message for verb in verbs), f"{name}: {finding}"
