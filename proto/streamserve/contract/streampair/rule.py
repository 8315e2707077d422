"""One shape for every rule that looks at more than one field, so that it can be written once more as CEL.

A rule sits at a node of the spec (`scope`, where the CRD will carry its x-kubernetes-validations), walks over
items of that node (`each`; CEL's `self.all(x, …)`; by default the node itself) and wants `holds(item)` to be
true. `at` says where inside the node the problem is shown. Predicates look at values only: no I/O, no clock.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)  # no slots: typing writes __orig_class__ on instances of generics
class Rule(Generic[Item]):
    id: str
    scope: Path
    holds: Callable[[Item], bool]
    message: Callable[[Item], str]
    at: Callable[[Item], Path]
    each: Callable[[Any], Iterable[Item]] = lambda node: (node,)

    def findings(self, pair: StreamPair) -> Iterator[Finding]:
        """Every item of this pair for which the rule does not hold."""
        node = look_up(pair, self.scope)
        if node is None:
            return
        for item in self.each(node):
            if not self.holds(item):
                yield Finding(self.id, self.scope + self.at(item), self.message(item))


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
    for name, field in model.model_fields.items():
        if field.alias == alias:
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
