"""The rules between fields as x-kubernetes-validations, each at the node where it stands.

Three sources: the tables in `rules.py` and `releases.py`; the keys of mappings, whose bounds a schema cannot express;
the fields that are fixed, as transition rules. A fixed field's rule stands at its parent, and every parent of a fixed
field must be required: so there is no way to remove the field (or a part above it) and to add it again with another
value.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from streamserve.contract.streampair import releases, rules
from streamserve.contract.streampair.crd.structural import Schema, key_bounds
from streamserve.contract.streampair.fields import PATTERN_MEANINGS, Lifecycle, Path
from streamserve.contract.streampair.rule import Cel, literal, message_expression
from streamserve.contract.streampair.schema import Setting

FIXED_MESSAGE = "cannot be changed: create another {kind}"


@dataclass(frozen=True, slots=True)
class Placed:
    """One rule of the CRD: its id, the node that carries it (`[]` is each item), and the entry itself."""

    id: str
    node: Path
    entry: dict[str, str]


def every_rule() -> Iterator[Placed]:
    """The two tables. One row becomes as many entries as it has places."""
    for rule in (*rules.RULES, *releases.UNBUILT):
        for cel in rule.cel:
            yield placed(rule.id, (*rule.scope, *cel.inner), rule.message, cel)


def rules_of_keys(schema: Schema) -> Iterator[Placed]:
    """Length and pattern of a mapping's keys, in the words of the loader."""
    for node, bounds in key_bounds(schema):
        if "maxLength" in bounds:
            longest = bounds["maxLength"]
            yield _each_key(
                "key-length",
                node,
                f"key.size() <= {longest}",
                f"must have at most {longest} characters, has {{size}}",
                {"size": "found.size()"},
            )
        if bounds.get("minLength"):
            message = "must not be empty: give it a value or remove the line"
            yield _each_key("key-not-empty", node, "key != ''", message, {})
        if "pattern" in bounds:
            matches = f"(key == '' || key.matches({literal(bounds['pattern'])}))"
            message = f'"{{key}}" must be {PATTERN_MEANINGS[bounds["pattern"]]}'
            yield _each_key("key-pattern", node, matches, message, {"key": "found"})


def rules_of_fixed_fields(settings: Iterable[Setting], schema: Schema, kind: str) -> Iterator[Placed]:
    for setting in settings:
        if setting.lifecycle is Lifecycle.FIXED:
            *parents, name = setting.path.split(".")
            _refuse_optional(setting.path, parents, schema)
            required = name in look_up(schema, tuple(parents))["required"]
            same = f"self.{name} == oldSelf.{name}"
            whole = same if required else f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})"
            yield placed("fixed", tuple(parents), FIXED_MESSAGE.format(kind=kind), Cel(whole, at=(name,)))


def place(schema: Schema, entries: Iterable[Placed]) -> None:
    """Write the entries into the schema."""
    for each in entries:
        look_up(schema, each.node).setdefault("x-kubernetes-validations", []).append(each.entry)


def placed(rule_id: str, node: Path, message: str, cel: Cel) -> Placed:
    entry = {"rule": cel.holds}
    if expression := message_expression(message, cel):
        entry["messageExpression"] = expression
    else:
        entry["message"] = message.format()
    if cel.at:
        entry["fieldPath"] = "." + ".".join(str(part) for part in cel.at)
    return Placed(rule_id, node, entry)


def look_up(schema: Schema, path: Path) -> Schema:
    """The node at a path; `[]` stands for an item of a list or a value of a mapping."""
    node: Any = schema
    for part in path:
        node = (node.get("items") or node["additionalProperties"]) if part == "[]" else node["properties"][part]
    assert isinstance(node, dict)
    return node


def _each_key(rule_id: str, node: Path, holds: str, message: str, values: dict[str, str]) -> Placed:
    first = f"self.filter(key, !({holds}))[0]"
    return placed(rule_id, node, message, Cel(f"self.all(key, {holds})", values, found=first))


def _refuse_optional(path: str, parents: list[str], schema: Schema) -> None:
    for depth, name in enumerate(parents):
        if name not in look_up(schema, tuple(parents[:depth])).get("required", ()):
            raise TypeError(f"{path} is fixed and {'.'.join(parents[: depth + 1])} is optional: mark it required")
