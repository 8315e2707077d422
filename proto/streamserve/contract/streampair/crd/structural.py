"""A pydantic model as a structural schema (apiextensions.k8s.io/v1).

Pydantic's JSON schema already has types, bounds, enums and descriptions. What is done to it here: references are
written out; `X or null` becomes X (Kubernetes leaves nulls out by itself); an absent part that has defaults inside
gets all of them (rules are held against a default as it is written); lists are atomic unless they say otherwise; open
objects keep what they do not know. A mapping's keys have bounds too, which such a schema cannot express: `key_bounds`
hands them to CEL.
"""

from collections.abc import Iterator
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core import core_schema

from streamserve.contract.streampair.fields import Path, SpecModel

Schema = dict[str, Any]

_KEPT: Final = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-preserve-unknown-fields",
    "required",
)
"""Keys that are copied, in the order in which a reader wants them."""

_KEY_BOUNDS: Final = "key-bounds"
"""Where a mapping's `propertyNames` wait for `key_bounds`; not part of the result."""


def structural(model: type[SpecModel], *, with_defaults: bool = True) -> Schema:
    """The schema of one model. Without defaults for a status, which only its writer fills in."""
    root = model.model_json_schema(by_alias=True, schema_generator=_WithFactories)
    return _converted(root, root.get("$defs", {}), with_defaults)


def key_bounds(schema: Schema, path: Path = ()) -> Iterator[tuple[Path, Schema]]:
    """Each mapping with bounds on its keys, and those bounds; they are taken out of the schema on the way."""
    if _KEY_BOUNDS in schema:
        yield path, schema.pop(_KEY_BOUNDS)
    for name, inner in schema.get("properties", {}).items():
        yield from key_bounds(inner, (*path, name))
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from key_bounds(schema[part], (*path, "[]"))


class _WithFactories(GenerateJsonSchema):
    """Defaults made by a factory are defaults too; that of a part is every default below it."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default" in schema or "default_factory" not in schema:
            return super().get_default_value(schema)
        value = schema["default_factory"]()  # type: ignore[call-arg]
        if isinstance(value, SpecModel):
            return value.model_dump(mode="json", by_alias=True, exclude_none=True)
        return value if isinstance(value, dict) else NoDefault


def _converted(node: Schema, definitions: dict[str, Schema], with_defaults: bool) -> Schema:
    node = _plain(node, definitions)
    if node.get("default", 0) is None or not with_defaults:
        node.pop("default", None)
    if node.get("type") == "integer":
        node["format"] = "int32" if abs(node.get("maximum", 0)) < 2**31 else "int64"
    if node.get("type") == "array":
        node.setdefault("x-kubernetes-list-type", "atomic")
    if "patternProperties" in node:
        ((node["keys-pattern"], node["additionalProperties"]),) = node["patternProperties"].items()
    if node.get("additionalProperties") is True:
        node["x-kubernetes-preserve-unknown-fields"] = True
    result: Schema = {key: node[key] for key in _KEPT if key in node}
    if "properties" in node:
        result["properties"] = {
            name: _converted(inner, definitions, with_defaults) for name, inner in node["properties"].items()
        }
    for part in ("items", "additionalProperties"):
        if isinstance(node.get(part), dict):
            result[part] = _converted(node[part], definitions, with_defaults)
    if bounds := _bounds_of_keys(node):
        result[_KEY_BOUNDS] = bounds
    return result


def _bounds_of_keys(node: Schema) -> Schema:
    """Pydantic writes a pattern of the keys as `patternProperties`; it goes back to the other bounds."""
    if not isinstance(node.get("additionalProperties"), dict):
        return {}
    pattern = {"pattern": node["keys-pattern"]} if "keys-pattern" in node else {}
    return {**node.get("propertyNames", {}), **pattern}


def _plain(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """The node without references and alternatives; what stands beside a reference wins over what it refers to."""
    node = dict(node)
    while True:
        if "$ref" in node:
            target = definitions[node.pop("$ref").removeprefix("#/$defs/")]
            node = {**target, **node}
        elif "anyOf" in node:
            (given,) = [choice for choice in node.pop("anyOf") if choice != {"type": "null"}]
            node = {**given, **node}
        else:
            return node
