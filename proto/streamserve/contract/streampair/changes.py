"""What an edit changes, and what each change takes: applied hot, lanes replaced, pods added or removed, or refused.

A StreamPair is flattened into leaves, path → (lifecycle, value): a field is a leaf, a mapping such as engine.args has
one leaf a key, a list is one leaf. Two versions differ in the leaves whose values differ. Labels, annotations and
status are no settings and are not looked at.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamserve.contract.streampair.fields import Lifecycle, Path, SpecModel, render
from streamserve.contract.streampair.resource import StreamPair
from streamserve.contract.streampair.schema import lifecycle_of

_CONSEQUENCES = {
    Lifecycle.HOT: "applied to what is running",
    Lifecycle.COLD: "replaces the lanes one after another",
    Lifecycle.SCALE: "adds or removes workers",
    Lifecycle.FIXED: "cannot be changed: create another StreamPair",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One leaf that differs. `old` or `new` is None where the leaf is absent."""

    path: str
    kind: Lifecycle
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.old)} → {_shown(self.new)} ({self.kind}: {_CONSEQUENCES[self.kind]})"


@dataclass(frozen=True, slots=True)
class Changes:
    """Every change of one edit, in the order of the resource."""

    items: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.items)

    def __iter__(self) -> Iterator[Change]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def hot(self) -> tuple[Change, ...]:
        return self._of(Lifecycle.HOT)

    @property
    def cold(self) -> tuple[Change, ...]:
        return self._of(Lifecycle.COLD)

    @property
    def scale(self) -> tuple[Change, ...]:
        return self._of(Lifecycle.SCALE)

    @property
    def fixed(self) -> tuple[Change, ...]:
        return self._of(Lifecycle.FIXED)

    def _of(self, kind: Lifecycle) -> tuple[Change, ...]:
        return tuple(change for change in self.items if change.kind is kind)


@dataclass(frozen=True, slots=True)
class Leaf:
    kind: Lifecycle
    value: Any


def classify(old: StreamPair, new: StreamPair) -> Changes:
    """Each leaf that differs, once, with what it takes."""
    before, after = leaves(old), leaves(new)
    found = []
    for path in dict.fromkeys((*before, *after)):
        left, right = before.get(path), after.get(path)
        if left is not None and right is not None and _equal(left.value, right.value):
            continue
        if _is_only_filled(path, left, right, before, after):
            continue
        kind = (left or right or Leaf(Lifecycle.COLD, None)).kind
        found.append(Change(render(path), kind, left and left.value, right and right.value))
    return Changes(tuple(found))


def leaves(pair: StreamPair, *, given_only: bool = False) -> dict[Path, Leaf]:
    """The settings of a pair by path; with `given_only`, those that its author wrote."""
    found: dict[Path, Leaf] = {
        ("metadata", "name"): Leaf(Lifecycle.FIXED, pair.metadata.name),
    }
    if not given_only or "namespace" in pair.metadata.model_fields_set:
        found["metadata", "namespace"] = Leaf(Lifecycle.FIXED, pair.metadata.namespace)
    found.update(_of_model(pair.spec, ("spec",), None, given_only))
    return found


def _of_model(
    model: SpecModel, path: Path, inherited: Lifecycle | None, given_only: bool
) -> Iterator[tuple[Path, Leaf]]:
    for name, field in type(model).model_fields.items():
        if given_only and name not in model.model_fields_set:
            continue
        value, inner = getattr(model, name), (*path, field.alias or name)
        kind = lifecycle_of(field) or inherited
        if isinstance(value, SpecModel):
            below = list(_of_model(value, inner, kind, given_only))
            yield from below
            if not below and kind is not None:
                yield inner, Leaf(kind, {})
        elif kind is not None and value is not None:
            yield from _of_value(value, inner, kind, top=True)


def _of_value(value: Any, path: Path, kind: Lifecycle, *, top: bool) -> Iterator[tuple[Path, Leaf]]:
    if not isinstance(value, dict):
        yield path, Leaf(kind, value)
        return
    for key, item in value.items():
        yield from _of_value(item, (*path, key), kind, top=False)
    if not value and not top:
        yield path, Leaf(kind, {})


def _equal(left: Any, right: Any) -> bool:
    """Equality that tells 1 from true and keeps NaN equal to itself, at any depth."""
    if isinstance(left, SpecModel) and isinstance(right, SpecModel):
        return _equal(left.model_dump(), right.model_dump())
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    return type(left) is type(right) and (left == right or (left != left and right != right))


def _is_only_filled(
    path: Path, left: Leaf | None, right: Leaf | None, before: dict[Path, Leaf], after: dict[Path, Leaf]
) -> bool:
    """An empty mapping that got its first key, or lost its last one: the key is listed, the mapping is not."""
    if left is not None and right is None and left.value == {}:
        return _has_below(after, path)
    if right is not None and left is None and right.value == {}:
        return _has_below(before, path)
    return False


def _has_below(found: dict[Path, Leaf], path: Path) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in found)


def _shown(value: Any) -> str:
    """Short, and without what could be a secret inside a list of objects."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value if len(value) <= 60 else value[:57] + "…"
        return text or '""'
    if isinstance(value, tuple | list):
        if all(isinstance(item, str) for item in value):
            return _shown("[" + ", ".join(value) + "]")
        return f"[{len(value)} {'entry' if len(value) == 1 else 'entries'}]"
    return "{}" if value == {} else str(value)
