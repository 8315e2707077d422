"""The CRDs without an API server: what reviewers of Kubernetes APIs look for, and that they say what the models say."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from streamserve.contract.streampair import StreamPair, flags, releases, rules, settings
from streamserve.contract.streampair.crd import definitions, every_rule, manifest, placed_rules
from streamserve.contract.streampair.crd.validations import look_up
from streamserve.contract.streampair.fields import Path as FieldPath
from streamserve.contract.streampair.fields import SpecModel
from streamserve.contract.streampair.resource import StreamPairSpec
from streamserve.contract.streampair.scaler import StreamPairScaler, StreamPairScalerSpec
from streamserve.contract.streampair.schema import settings_of

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("streampairs", "streampairscalers")
Schema = dict[str, Any]
OPEN = {"affinity", "volumes"}


@cache
def schema(name: str) -> Schema:
    root: Schema = definitions()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return root


def nodes(node: Schema, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Schema]]:
    yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from nodes(inner, (*path, name))
    for part in ("items", "additionalProperties"):
        if part in node:
            yield from nodes(node[part], (*path, "[]"))


NODES = [(name, path, node) for name in NAMES for path, node in nodes(schema(name))]
IDS = [f"{name}:{'.'.join(map(str, path))}" for name, path, _ in NODES]


def below(*parts: str) -> list[tuple[str, FieldPath, Schema]]:
    """Fields that are ours: spec and status, list items and mapping values left out where asked for fields."""
    return [(name, path, node) for name, path, node in NODES if path[:1] in [(part,) for part in parts]]


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_what_the_models_give(name: str) -> None:
    assert (ROOT / "crds" / f"{name}.yaml").read_text(encoding="utf-8") == manifest(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", [(1, 1), (1, 2)])
def test_the_file_means_the_same_in_yaml_1_1_and_1_2(name: str, version: tuple[int, int]) -> None:
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    assert yaml.load(manifest(name)) == definitions()[name]


def test_every_field_has_a_description() -> None:
    assert [
        (name, path) for name, path, node in below("spec", "status") if path[-1] != "[]" and not node.get("description")
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_pattern_has_a_class_that_python_and_go_read_differently(name: str) -> None:
    patterns = [node["pattern"] for which, _, node in NODES if which == name and "pattern" in node]
    patterns += [rule.entry["rule"] for rule in placed_rules()[name]]
    assert [pattern for pattern in patterns if re.search(r"\\[sSdDwWbB]|\[\[:|[(][?]", pattern)] == []


def test_every_text_list_and_mapping_has_a_bound() -> None:
    def is_open(node: Schema) -> bool:
        match node.get("type"):
            case "string":
                return "maxLength" not in node and "enum" not in node
            case "array":
                return "maxItems" not in node
            case "object":
                return "properties" not in node and "maxProperties" not in node
            case None:
                return not (node.get("x-kubernetes-int-or-string") and "maxLength" in node)
            case _:
                return False

    assert [(name, path) for name, path, node in below("spec", "status") if is_open(node)] == []


def test_every_whole_number_of_the_spec_has_bounds_and_a_width() -> None:
    for name, path, node in below("spec"):
        if node.get("type") == "integer":
            assert {"minimum", "maximum", "format"} <= node.keys(), (name, path)


def test_there_are_no_floats_no_phase_and_times_are_whole_numbers_with_their_unit() -> None:
    for name, path, node in below("spec", "status"):
        assert node.get("type") != "number", (name, path)
        assert path[-1] != "phase", (name, path)
        assert node.get("format") != "duration", (name, path)
        if re.search(r"(?i)(timeout|interval|delay|period)$", str(path[-1])):
            raise AssertionError(f"{name} {path} has no unit in its name")


def test_only_affinity_and_volumes_are_open_inside() -> None:
    found = {path[-2] if path[-1] == "[]" else path[-1] for _, path, node in NODES if _is_kept_as_it_is(node)}
    assert found == OPEN


def _is_kept_as_it_is(node: Schema) -> bool:
    return bool(node.get("x-kubernetes-preserve-unknown-fields"))


def test_every_list_says_how_it_merges() -> None:
    for name, path, node in below("spec", "status"):
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in ("atomic", "set", "map"), (name, path)
    assert look_up(schema("streampairs"), ("status", "conditions"))["x-kubernetes-list-map-keys"] == ["type"]


def test_the_schema_is_structural() -> None:
    for name, path, node in NODES:
        assert "$ref" not in node and "anyOf" not in node and "nullable" not in node, (name, path)
        assert ("type" in node) != bool(node.get("x-kubernetes-int-or-string")), (name, path)
        assert not ("properties" in node and "additionalProperties" in node), (name, path)
        assert node.get("additionalProperties") is not False, (name, path)


@pytest.mark.parametrize(("name", "scale"), [("streampairs", ".spec.lanes"), ("streampairscalers", ".spec.replicas")])
def test_kubectl_and_autoscalers_find_what_they_need(name: str, scale: str) -> None:
    spec = definitions()[name]["spec"]
    (version,) = spec["versions"]
    assert version["subresources"]["status"] == {}
    assert version["subresources"]["scale"]["specReplicasPath"] == scale
    wanted, current, selector = version["subresources"]["scale"].values()
    for path in (wanted, current, selector):
        look_up(schema(name), tuple(path.strip(".").split(".")))
    assert look_up(schema(name), tuple(scale.strip(".").split(".")))["default"] == 1
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns[-1] == "Age"
    assert spec["names"]["categories"] == ["streamserve"]
    assert len(spec["names"]["shortNames"]) == 1


def test_every_column_shows_a_field_that_exists() -> None:
    for name in NAMES:
        for column in definitions()[name]["spec"]["versions"][0]["additionalPrinterColumns"]:
            parts = re.sub(r"\[.*\]", "", column["jsonPath"]).strip(".").split(".")
            if parts[0] != "metadata" and "conditions" not in parts:
                look_up(schema(name), tuple(parts))


def filled(node: Schema, given: dict[str, Any]) -> dict[str, Any]:
    """What an API server makes of an object: absent fields get their defaults, at every depth."""
    result = dict(given)
    for name, inner in node.get("properties", {}).items():
        if name not in result and "default" in inner:
            result[name] = inner["default"]
        if isinstance(result.get(name), dict):
            result[name] = filled(inner, result[name])
    return result


SPECS: dict[str, tuple[type[SpecModel], dict[str, Any]]] = {
    "streampairs": (StreamPairSpec, {"model": {"name": "m"}}),
    "streampairscalers": (StreamPairScalerSpec, {"pairName": "a", "role": "Decode"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_models(name: str) -> None:
    model, least = SPECS[name]
    typed = model.model_validate(least, by_alias=True, by_name=False)
    assert filled(schema(name)["properties"]["spec"], least) == typed.model_dump(
        mode="json", by_alias=True, exclude_none=True
    )


@pytest.mark.parametrize("path", [p for p, n in nodes(schema("streampairs")) if isinstance(n.get("default"), dict)])
def test_a_part_gets_the_same_defaults_whether_it_is_absent_or_empty(path: FieldPath) -> None:
    node = look_up(schema("streampairs"), path)
    assert filled(node, node["default"]) == filled(node, {}) == node["default"]


@pytest.mark.parametrize("given", [{}, {"update": {}}, {"update": {"maxSurge": 1}}])
def test_leave_to_stop_the_only_lane_is_in_an_object_only_where_its_author_wrote_it(given: dict[str, Any]) -> None:
    stored = filled(schema("streampairs")["properties"]["spec"], given)
    assert "maxUnavailable" not in stored["update"]


def test_a_status_has_no_defaults() -> None:
    assert [path for _, path, node in below("status") if "default" in node] == []


def test_every_setting_of_the_table_is_a_field_with_the_same_bounds() -> None:
    for setting in settings():
        if setting.path.startswith("metadata."):
            continue
        path = tuple(setting.path.replace("[]", ".[]").split("."))
        node = look_up(schema("streampairs"), path)
        if ".." in setting.bounds and setting.type == "integer":
            assert f"{node['minimum']}..{node['maximum']}" == setting.bounds, path
        if setting.type == "enum":
            assert ", ".join(node["enum"]) == setting.bounds, path


def test_every_row_of_the_rules_is_in_the_crd() -> None:
    rows = [*rules.RULES, *releases.UNBUILT]
    placed = list(every_rule())
    assert {each.id for each in placed} == {row.id for row in rows}
    assert len(placed) == sum(len(row.cel) for row in rows)
    for each in placed:
        entries = look_up(schema("streampairs"), each.node)["x-kubernetes-validations"]
        assert each.entry in entries, each


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_of_the_crd_is_known_and_says_something(name: str) -> None:
    known = [(each.node, each.entry) for each in placed_rules()[name]]
    found = [(path, entry) for path, node in nodes(schema(name)) for entry in node.get("x-kubernetes-validations", [])]
    assert sorted(map(repr, found)) == sorted(map(repr, known))
    for path, entry in found:
        assert bool(entry.get("message")) != bool(entry.get("messageExpression")), path


def test_a_rule_shows_its_problem_at_a_field_that_exists() -> None:
    for name, path, node in NODES:
        for entry in node.get("x-kubernetes-validations", []):
            if "fieldPath" in entry:
                look_up(schema(name), (*path, *entry["fieldPath"].strip(".").split(".")))


def test_a_row_that_is_removed_is_gone_from_the_crd(monkeypatch: pytest.MonkeyPatch) -> None:
    before = manifest("streampairs")
    monkeypatch.setattr(rules, "RULES", tuple(row for row in rules.RULES if row.id != "update-can-progress"))
    after = manifest("streampairs")
    assert "no lane could ever be replaced" in before
    assert "no lane could ever be replaced" not in after


@pytest.mark.parametrize("name", NAMES)
def test_fixed_fields_have_a_transition_rule_at_a_parent_that_is_always_there(name: str) -> None:
    fixed = [s.path for s in settings_of(SPECS[name][0]) if s.lifecycle == "fixed"]
    assert fixed
    for path in fixed:
        *parents, field = path.split(".")
        entries = look_up(schema(name), tuple(parents))["x-kubernetes-validations"]
        assert any(e["rule"] == f"self.{field} == oldSelf.{field}" and e["fieldPath"] == f".{field}" for e in entries)
        for depth in range(len(parents) + 1):
            part = (*parents, field)[depth]
            assert part in look_up(schema(name), tuple(parents[:depth]))["required"]


def test_an_owned_flag_is_the_first_that_it_begins() -> None:
    # CEL looks for the first owned flag that begins so; Python for an equal one first. They must be one.
    owned = list(flags.OWNED_FLAGS)
    for flag in owned:
        assert next(other for other in owned if other.startswith(flag)) == flag
        assert flags.owner(f"no-{flag}") == flag


def test_a_scaler_takes_what_the_crd_takes() -> None:
    scaler = {"metadata": {"name": "llama-decode"}, "spec": {"pairName": "llama", "role": "Decode"}}
    assert StreamPairScaler.model_validate(scaler, by_alias=True, by_name=False).spec.replicas == 1


def test_the_kinds_of_the_crds_are_the_kinds_of_the_models() -> None:
    kinds = {name: definition["spec"]["names"]["kind"] for name, definition in definitions().items()}
    assert kinds == {"streampairs": StreamPair.__name__, "streampairscalers": StreamPairScaler.__name__}
