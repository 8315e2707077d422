"""One shape for every rule that looks at more than one field, written twice and worded once.

A rule sits at a node of the spec (`scope`), walks over items of that node (`each`; by default the node itself) and
wants `holds(item)` to be true. `at` says where inside the node the problem is shown, `message` what to do, with the
item's `values` in its braces. Predicates look at values only: no I/O, no clock.

`cel` says the same to an API server: `holds` over `self`, the node at the same scope, and a CEL expression for each
of the values. Both messages are made from the one text, so `streamserve validate` and `kubectl apply` cannot come to
speak differently, and who removes the row removes the rule from both. CEL shows a problem at a constant place and once
for all items: `at` is therefore the field that holds them, and `found` is the first of them. A rule whose place
depends on the object has one `Cel` for each place.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any, Generic, NamedTuple, TypeVar

from streamserve.contract.streampair.fields import Path, SpecModel, render
from streamserve.contract.streampair.resource import StreamPair

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that does not hold, where, and what to do."""

    rule: str
    path: Path
    message: str

    def __str__(self) -> str:
        return f"{render(self.path)}: {self.message}"


@dataclass(frozen=True, slots=True)
class Cel:
    """A rule in the Common Expression Language of Kubernetes.

    `found` is the expression of the first offender, which `values` may then call `found`. `inner` moves the rule from
    the rule's scope to a node below it, so that the place can have a list index; its `[]` is each item.
    """

    holds: str
    values: Mapping[str, str] = field(default_factory=dict)
    found: str = ""
    at: Path = ()
    inner: Path = ()


@dataclass(frozen=True)  # no slots: typing writes __orig_class__ on instances of generics
class Rule(Generic[Item]):
    id: str
    scope: Path
    holds: Callable[[Item], bool]
    message: str
    at: Callable[[Item], Path]
    cel: tuple[Cel, ...]
    values: Callable[[Item], Mapping[str, object]] = lambda _item: {}
    each: Callable[[Any], Iterable[Item]] = lambda node: (node,)

    def findings(self, pair: StreamPair) -> Iterator[Finding]:
        """Every item of this pair for which the rule does not hold."""
        node = look_up(pair, self.scope)
        if node is None:
            return
        for item in self.each(node):
            if not self.holds(item):
                yield Finding(self.id, self.scope + self.at(item), self.message.format(**self.values(item)))


def look_up(node: Any, path: Path) -> Any:
    """The value at a path written with YAML names; None where an optional part is absent."""
    for part in path:
        if node is None:
            return None
        if isinstance(node, SpecModel):
            node = getattr(node, _python_name(type(node), str(part)))
        else:
            node = node[part]
    return node


def _python_name(model: type[SpecModel], alias: str) -> str:
    for name, field_ in model.model_fields.items():
        if field_.alias == alias:
            return name
    raise KeyError(f"{model.__name__} has no field {alias}")


def here(*path: str | int) -> Callable[[Any], Path]:
    """Show the problem at a constant place of the node."""
    return lambda _item: path


class Entry(NamedTuple):
    """An item of a list or mapping, and where it stands; for rules whose `each` yields the offenders."""

    at: Path
    value: Any


def never(_item: object) -> bool:
    """`holds` of a rule whose `each` yields offenders only."""
    return False


def repeated(names: list[str]) -> list[Entry]:
    """Each name that stands earlier in the list too, for a rule whose `holds` is `never`."""
    return [Entry((index,), name) for index, name in enumerate(names) if name in names[:index]]


def repeated_cel(items: str, name: str, value: str = "name") -> Cel:
    """The same in CEL; `name` is the expression of an item's name, where the item is called x."""
    other = name.replace("x", "y", 1)
    return Cel(
        f"self.{items}.all(x, self.{items}.exists_one(y, {name} == {other}))",
        {value: name.replace("x", "found", 1)},
        found=f"self.{items}.filter(x, !self.{items}.exists_one(y, {name} == {other}))[0]",
        at=(items,),
    )


def literal(value: object) -> str:
    """A text, number, list or mapping as CEL writes it."""
    match value:
        case str():
            return "'" + re.sub(r"([\\'])", r"\\\1", value) + "'"
        case dict():
            return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(literal(item) for item in value) + "]"
        case _:
            return str(value)


def message_expression(message: str, cel: Cel) -> str:
    """The message with its values, as CEL; an empty text where it has none and is itself the message.

    Written with `format`, whose cost an API server can bound; it takes that of joining texts for unbounded.
    """
    text, values = "", []
    for plain, name, _, _ in Formatter().parse(message):
        text += plain.replace("%", "%%")
        if name is not None:
            text += "%s"
            values.append(cel.values[name])
    if not values:
        return ""
    formatted = f"{literal(text)}.format([{', '.join(values)}])"
    return f"[{cel.found}].map(found, {formatted})[0]" if cel.found else formatted
