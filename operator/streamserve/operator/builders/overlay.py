"""The user's template laid over a pod that we built.

Maps are merged key by key and lists appended. An environment variable replaces ours of the same name unless we own it,
and a spread constraint ours over the same topology.
`securityContext` is taken field by field over the restricted defaults: fields that only a pod has go to the pod,
the others to the container. What we own the contract's rules refuse (`rules_pods.py`, `rules_volumes.py`), so that
laying over can not go wrong here; what the API server finds wrong with the rest, it says itself.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from streamserve.contract.streampair.workers import Template

POD_ONLY_SECURITY: Final = frozenset(
    {"fsGroup", "fsGroupChangePolicy", "supplementalGroups", "supplementalGroupsPolicy", "sysctls"}
)
_MERGED: Final = frozenset(
    {"nodeSelector", "affinity", "tolerations", "topologySpreadConstraints", "volumes", "imagePullSecrets"}
)
_LISTS_BY_KEYS: Final = {"topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable")}
"""What tells the items of such a list apart: the API server refuses two that are alike in it."""
_REPLACED: Final = ("serviceAccountName", "priorityClassName", "runtimeClassName")
_EMPTY: Final[dict[type, Any]] = {dict: {}, list: []}


def lay_over(metadata: dict[str, Any], spec: dict[str, Any], template: Template) -> None:
    """Change the pod's metadata and spec, whose first container is ours, in place."""
    given, container = as_written(template), spec["containers"][0]
    metadata["labels"] = {**given.get("labels", {}), **metadata["labels"]}
    if annotations := given.get("annotations"):
        metadata["annotations"] = {**annotations, **metadata.get("annotations", {})}
    for field in sorted(_MERGED & given.keys()):
        if given[field]:
            ours = _without(given[field], spec.get(field, _EMPTY[type(given[field])]), _LISTS_BY_KEYS.get(field, ()))
            spec[field] = merged(ours, given[field])
    if mounts := given.get("volumeMounts"):
        container["volumeMounts"] = [*container["volumeMounts"], *mounts]
    container["env"] = _environment(container["env"], given.get("env", []))
    for field in _REPLACED:
        if given.get(field):
            spec[field] = given[field]
    for field, value in given.get("securityContext", {}).items():
        place = spec if field in POD_ONLY_SECURITY else container
        place["securityContext"] = merged(place["securityContext"], {field: value})


def as_written(template: Template) -> dict[str, Any]:
    """The keys that the user gave, as plain values under their Kubernetes names."""
    return template.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def merged(ours: Any, theirs: Any) -> Any:
    """Maps by key, lists one after the other, anything else theirs. A null says nothing, as Kubernetes takes it."""
    if theirs is None:
        return copy.deepcopy(ours)
    if isinstance(ours, dict) and isinstance(theirs, dict):
        result = {key: copy.deepcopy(value) for key, value in ours.items()}
        for key, value in theirs.items():
            result[key] = merged(result[key], value) if key in result else copy.deepcopy(value)
        return result
    if isinstance(ours, list) and isinstance(theirs, list):
        return [*copy.deepcopy(ours), *copy.deepcopy(theirs)]
    return copy.deepcopy(theirs)


def _without(theirs: Any, ours: Any, keys: tuple[str, ...]) -> Any:
    """Ours less the items that one of theirs stands in for."""
    if not keys:
        return ours
    taken = [[item[key] for key in keys] for item in theirs]
    return [item for item in ours if [item[key] for key in keys] not in taken]


def _environment(ours: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours first: an argument may name only variables, and a variable only those before it."""
    theirs = {str(variable.get("name")): variable for variable in given}
    replaced = [theirs.pop(variable["name"], variable) for variable in ours]
    return [*replaced, *theirs.values()]
