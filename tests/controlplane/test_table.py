"""Every object of the table gets the same verdict from a real API server and from `streamserve validate`."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.api_server import ApiServer
from tests.support.stream_pairs import DRY_RUN, PAIRS, TABLE, causes, create, document, findings, is_at, merged

from streamserve.contract.streampair import Setting, StreamPair, flags, read, settings
from streamserve.contract.streampair.crd import definitions

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*/streampair.yaml"))
NUMBERS = [s for s in settings() if s.type == "integer" and ".." in s.bounds and "[]" not in s.path]
WORDS = [s for s in settings() if s.type == "enum" and "[]" not in s.path]
UNCHECKED = "<nil>"
"""Where the API server says that it left rules out, because a value is too long or missing."""


@pytest.mark.parametrize("name", TABLE["good"])
def test_is_accepted_with_the_defaults_of_the_models(server: ApiServer, name: str) -> None:
    case = TABLE["good"][name]
    answer = create(server, case)
    assert answer.ok, answer.body
    assert read(json.dumps(document(case))).pair is not None
    typed = StreamPair.model_validate(document(case), by_alias=True, by_name=False)
    stored = StreamPair.model_validate(
        {"metadata": document(case)["metadata"], "spec": answer.body["spec"]}, by_alias=True, by_name=False
    )
    assert stored.spec == typed.spec


@pytest.mark.parametrize("name", TABLE["bad"])
def test_is_refused_by_the_same_rules_at_the_same_fields_in_the_same_words(server: ApiServer, name: str) -> None:
    case = TABLE["bad"][name]
    answer, broken = create(server, case), findings(case)
    assert answer.status == 422, answer.body
    assert read(json.dumps(document(case))).pair is None
    told = {cause: _rules_that_say(cause.field, cause.message, broken) for cause in causes(answer)}
    assert [cause for cause, by in told.items() if not by] == []
    assert {rule for by in told.values() for rule in by} == {finding.rule for finding in broken}
    assert any(case["rule"] in by and is_at(cause.field, case["at"]) for cause, by in told.items())


@pytest.mark.parametrize("name", TABLE["malformed"])
def test_is_refused_by_the_type_of_the_same_field(server: ApiServer, name: str) -> None:
    case = TABLE["malformed"][name]
    answer = create(server, case)
    assert answer.status == 422, answer.body
    problems = [problem.path for problem in read(json.dumps(document(case))).problems]
    fields = {cause.field for cause in causes(answer)} - {UNCHECKED}
    assert case["at"] in problems
    assert any(is_at(field, case["at"]) for field in fields), answer.body
    assert [field for field in fields if not any(is_at(field, path) for path in problems)] == []


def _rules_that_say(field: str, message: str, broken: list[Any]) -> set[str]:
    return {each.rule for each in broken if each.message == message and is_at(field, str(each).split(": ")[0])}


def _with(setting: Setting, value: Any) -> dict[str, Any]:
    change: Any = value
    for part in reversed(setting.path.split(".")):
        change = {part: change}
    result: dict[str, Any] = merged(document({}), change)
    return result


@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.path)
def test_a_number_outside_its_bounds_is_refused_at_its_field(server: ApiServer, setting: Setting) -> None:
    low, high = map(int, setting.bounds.split(".."))
    for value, wrong in ((low - 1, True), (low, False), (high, False), (high + 1, True)):
        answer = server.call("POST", PAIRS + DRY_RUN, _with(setting, value))
        said = [message for field, message in answer.causes if field == setting.path]
        assert any("should be" in message for message in said) == wrong, (value, answer.body)


@pytest.mark.parametrize("setting", WORDS, ids=lambda setting: setting.path)
def test_an_unknown_word_is_refused_at_its_field(server: ApiServer, setting: Setting) -> None:
    answer = server.call("POST", PAIRS + DRY_RUN, _with(setting, "none of them"))
    assert setting.path in [field for field, message in answer.causes if "Unsupported value" in message], answer.body


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"lane": 2}},
        {"spec": {"prefill": {"template": {"hostNetwork": True}}}},
        {"spec": {"decode": {"template": {"env": [{"name": "A", "text": "b"}]}}}},
    ],
)
def test_an_unknown_field_is_refused(server: ApiServer, change: dict[str, Any]) -> None:
    body = merged(document({}), change)
    answer = server.call("POST", PAIRS + DRY_RUN, body)
    assert answer.status == 400
    assert "unknown field" in answer.body["message"]
    assert any("unknown field" in problem.message for problem in read(json.dumps(body)).problems)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_an_example_can_be_applied(server: ApiServer, path: Path) -> None:
    example = merged(YAML(typ="safe").load(path), {"metadata": {"namespace": "default"}})
    answer = server.call("POST", PAIRS + DRY_RUN, example)
    assert answer.ok, answer.body


@pytest.mark.parametrize(
    "name", ["a served name twice", "a workload twice", "the model as a flag", "eagle without a draft"]
)
def test_server_side_apply_says_the_same_as_create(server: ApiServer, name: str) -> None:
    case = TABLE["bad"][name]
    path = f"{PAIRS}/{document(case)['metadata']['name']}{DRY_RUN}&fieldManager=test"
    applied = server.call("PATCH", path, document(case), content="application/apply-patch+yaml")
    assert applied.status == 422
    assert causes(applied) == causes(create(server, case))


def largest() -> dict[str, Any]:
    """As many entries of everything as the bounds allow, each as long as is allowed and no two alike early on."""

    def names(count: int, length: int) -> list[str]:
        return ["x" * (length - 4) + f"{number:04}" for number in range(count)]

    def keys(count: int) -> list[str]:
        return [f"{'x' * 253}/{name}" for name in names(count, 63)]

    args = dict.fromkeys(names(128, 64), "1")
    expressions = [{"key": key, "operator": "Exists"} for key in keys(16)]
    template = {
        "labels": dict.fromkeys(keys(64), "v" * 63),
        "annotations": dict.fromkeys(keys(64), "v" * 63),
        "nodeSelector": dict.fromkeys(keys(64), "v" * 63),
        "env": [{"name": name, "value": "v" * 100} for name in names(128, 253)],
        "imagePullSecrets": [{"name": name} for name in names(16, 253)],
        "volumes": [{"name": name, "emptyDir": {}} for name in names(64, 63)],
        "volumeMounts": [
            {"name": name, "mountPath": f"/{path}", "subPath": path[:512]}
            for name, path in zip(names(64, 63), names(64, 1023), strict=True)
        ],
        "tolerations": [{"key": key, "value": "v" * 63} for key in keys(64)],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}
            for key, selector in zip(keys(16), [{"matchExpressions": expressions}] * 16, strict=True)
        ],
    }
    quantities = dict.fromkeys(keys(32), "1" * 32)
    role = {
        "engine": {"args": args},
        "template": template,
        "resources": {"limits": quantities, "requests": quantities},
    }
    spec = {
        "model": {"name": "m" * 512, "servedNames": names(16, 128)},
        "engine": {"args": args},
        "prefill": role,
        "decode": role,
        "router": {"template": template},
        "slo": {"workloads": [{"name": name} for name in names(64, 32)]},
        "admission": {
            "tenants": [{"name": name, "tokensPerSecond": 1, "burstTokens": 1} for name in names(256, 63)],
        },
        "speculation": {
            "policy": "Static",
            "maxDepth": 16,
            "staticTable": [{"maxBatch": 1 + row, "depth": 16} for row in range(32)],
        },
    }
    return {"spec": spec}


def test_the_largest_object_costs_no_rule_more_than_the_server_allows(server: ApiServer) -> None:
    case = largest()
    said = {(cause.field, cause.message) for cause in causes(create(server, case))}
    assert said == {(str(each).split(": ")[0], each.message) for each in findings(case)}


FLAGS = sorted(
    {
        *flags.OWNED_FLAGS,
        *flags.SHORT_FLAGS,
        *flags.SAME_ON_BOTH_ROLES,
        *flags.PARALLEL_FLAGS,
        *(f"no-{flag}" for flag in flags.OWNED_FLAGS),
        *(flag.replace("-", "_") for flag in flags.OWNED_FLAGS),
        *(flag.upper() for flag in flags.OWNED_FLAGS),
        *(flag[:-2] for flag in flags.OWNED_FLAGS if len(flag) > 4),
        *(f"{flag}.some_key.another" for flag in (*flags.SHORT_FLAGS, "kv-transfer-config", "compilation_config")),
        *("max-model-len", "max_model_len", "hf-overrides", "hf_overrides.a_b", "no-enable-prefix-caching", "s", "No"),
    }
)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_read_alike(server: ApiServer, flag: str) -> None:
    case = {"spec": {"engine": {"args": {flag: "1"}}}}
    said = {cause.message for cause in causes(create(server, case))}
    assert said == {finding.message for finding in findings(case)}


def mappings(node: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    found = [(path, node)] if any("self.all(key" in e["rule"] for e in node.get("x-kubernetes-validations", [])) else []
    for name, inner in node.get("properties", {}).items():
        found += mappings(inner, (*path, name))
    return found


SCHEMA = definitions()["streampairs"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("path", [path for path, _ in mappings(SCHEMA)], ids=".".join)
@pytest.mark.parametrize("key", ["k" * 318, "", "-"], ids=["long", "empty", "dash"])
def test_a_key_of_a_mapping_has_bounds_too(server: ApiServer, path: tuple[str, ...], key: str) -> None:
    change: Any = {key: "1"}
    for part in reversed(path):
        change = {part: change}
    body = merged(document({}), change)
    said = {(cause.field, cause.message) for cause in causes(server.call("POST", PAIRS + DRY_RUN, body))}
    place = ".".join(path)
    for problem in read(json.dumps(body)).problems:
        assert is_at(place, problem.path)
        if len(key) <= 60:
            assert (place, problem.message) in said
    assert bool(said) == bool(read(json.dumps(body)).problems)
