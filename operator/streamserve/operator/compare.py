"""Whether a live object holds what we would apply, and which field does not.

Only fields that we send are looked at: what others add or the API server defaults is no difference. A selector is the
exception: with one more label in it, it selects nothing. Three things are equal although they are written differently:
a value that is empty and one that is absent (the server drops it), a quantity in two spellings (`1000m`, `1`), and a
list whose entries have a name, with somebody's entries added to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from streamserve.operator import naming
from streamserve.operator.naming import Manifest

_SERVER_FIELDS: Final = frozenset({("metadata", "namespace"), ("apiVersion",), ("kind",)})
_QUANTITIES: Final = frozenset({"limits", "requests", "sizeLimit"})
_NAMED_BY: Final = {
    "ownerReferences": "uid",
    "containers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
}
_WHOLE: Final = "selector"
_KEYED_BY_VALUE: Final = "ports"
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_DECIMAL: Final = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_BINARY: Final = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
Path = tuple[str, ...]


def difference(ours: Any, live: Any) -> str:
    """The first field of ours that the live object does not have as we want it, such as `spec.replicas`; or nothing.
    The fingerprint of what was rendered is named only where nothing else differs: something was taken out."""
    found = [".".join(path) for path in _differences(ours, live, ())]
    return next((path for path in found if naming.RENDERED not in path), next(iter(found), ""))


def to_replace(ours: Manifest, live: Manifest) -> Manifest | None:
    """A strategic merge patch that makes the lists of ports ours alone; None where they are.

    Server-side apply tells ports apart by their number. One that a hand has given another number stays, the one that we
    apply is added, and the API server refuses two of one name; one that a hand has added stays for good.
    """
    differ = any(_KEYED_BY_VALUE in path for path in _differences(ours, live, ()))
    return _replacing(ours) if differ else None


def _replacing(ours: Manifest) -> Manifest:
    found: Manifest = {}
    for key, value in ours.items():
        if key == _KEYED_BY_VALUE and isinstance(value, list):
            found[key] = [{"$patch": "replace"}, *value]
        elif isinstance(value, dict) and (inner := _replacing(value)):
            found[key] = inner
        elif isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value):
            items = [{"name": item["name"], **inner} for item in value if (inner := _replacing(item))]
            found |= {key: items} if items else {}
    return found


def _differences(ours: Any, live: Any, path: Path) -> Iterator[Path]:
    if path in _SERVER_FIELDS or _is_empty(ours, live):
        return
    if path[-1:] == (_WHOLE,) and ours != live:
        yield path
    elif isinstance(ours, dict) and isinstance(live, dict):
        for key, value in ours.items():
            yield from _differences(value, live.get(key), (*path, key))
    elif isinstance(ours, list) and isinstance(live, list):
        yield from _of_lists(ours, live, path)
    elif not _same(ours, live, path):
        yield path


def _of_lists(ours: list[Any], live: list[Any], path: Path) -> Iterator[Path]:
    key = _NAMED_BY.get(path[-1])
    if key is not None and all(isinstance(item, dict) and key in item for item in (*ours, *live)):
        present = {item[key]: item for item in live}
        for item in ours:
            yield from _differences(item, present.get(item[key]), (*path, str(item[key])))
    elif len(ours) != len(live):
        yield path
    else:
        for index, (left, right) in enumerate(zip(ours, live, strict=True)):
            yield from _differences(left, right, (*path, str(index)))


def _is_empty(ours: Any, live: Any) -> bool:
    return live is None and (ours is None or ours is False or ours in ("", 0, [], {}))


def _same(ours: Any, live: Any, path: Path) -> bool:
    if ours == live:
        return True
    if not _QUANTITIES.intersection(path):
        return False
    left, right = quantity(ours), quantity(live)
    return left is not None and left == right


def quantity(value: object) -> Fraction | None:
    """The number that a Kubernetes quantity means; None where it is none."""
    found = _QUANTITY.fullmatch(str(value))
    if found is None:
        return None
    number, suffix = Fraction(found[1]), found[2] or ""
    if suffix in _BINARY:
        return number * Fraction(1024 ** _BINARY[suffix])
    return number / 1000 if suffix == "m" else number * Fraction(1000 ** _DECIMAL[suffix])
