"""The user's template laid over a pod that we built, and what of it is refused because it is ours.

Maps are merged key by key, lists are appended, environment variables replace ours of the same name unless we own it.
`securityContext` is taken field by field over the restricted defaults: fields that only a pod has go to the pod,
the others to the container. What we own is refused by name before anything is built (`refusals`), so that laying
over can not go wrong here; what the API server finds wrong with the rest, it says itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

from streamserve.contract.streampair import StreamPair
from streamserve.contract.streampair.workers import Template
from streamserve.operator import naming
from streamserve.operator.builders import parts, weights

POD_ONLY_SECURITY: Final = frozenset(
    {"fsGroup", "fsGroupChangePolicy", "supplementalGroups", "supplementalGroupsPolicy", "sysctls"}
)
_MERGED: Final = frozenset(
    {"nodeSelector", "affinity", "tolerations", "topologySpreadConstraints", "volumes", "imagePullSecrets"}
)
_REPLACED: Final = ("serviceAccountName", "priorityClassName", "runtimeClassName")
_EMPTY: Final[dict[type, Any]] = {dict: {}, list: []}
_OWN_VOLUMES: Final = frozenset((*parts.VOLUMES, *weights.VOLUMES))
_OWN_PATHS: Final = ("/etc/streamserve", "/dev/shm", weights.MODEL_PATH, weights.DRAFT_PATH)


def lay_over(metadata: dict[str, Any], spec: dict[str, Any], template: Template) -> None:
    """Change the pod's metadata and spec, whose first container is ours, in place."""
    given, container = as_written(template), spec["containers"][0]
    metadata["labels"] = {**given.get("labels", {}), **metadata["labels"]}
    if annotations := given.get("annotations"):
        metadata["annotations"] = {**annotations, **metadata.get("annotations", {})}
    for field in sorted(_MERGED & given.keys()):
        if given[field]:
            spec[field] = merged(spec.get(field, _EMPTY[type(given[field])]), given[field])
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
    """Maps by key, lists one after the other, anything else theirs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        result = {key: copy.deepcopy(value) for key, value in ours.items()}
        for key, value in theirs.items():
            result[key] = merged(result[key], value) if key in result else copy.deepcopy(value)
        return result
    if isinstance(ours, list) and isinstance(theirs, list):
        return [*copy.deepcopy(ours), *copy.deepcopy(theirs)]
    return copy.deepcopy(theirs)


def _environment(ours: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours first: an argument may name only variables, and a variable only those before it."""
    theirs = {str(variable.get("name")): variable for variable in given}
    replaced = [theirs.pop(variable["name"], variable) for variable in ours]
    return [*replaced, *theirs.values()]


def refusals(pair: StreamPair) -> list[str]:
    """Each entry of a template that would take what is ours, as `path: what to do`; the contract refuses the rest."""
    spec = pair.spec
    found: list[str] = []
    for path, template in (
        ("spec.prefill.template", spec.prefill.template),
        ("spec.decode.template", spec.decode.template),
        ("spec.router.template", spec.router.template),
    ):
        found += _refused(path, template)
    if len(weights.tokens(spec)) > 1:
        found.append(
            "spec.speculation.draft.source.hub.tokenSecret: differs from the model's and a pod has one token: "
            "name a token that may read both"
        )
    return found


def _refused(path: str, template: Template) -> Iterator[str]:
    given, own_labels = as_written(template), naming.labels("", naming.ROUTER)
    for label in given.get("labels", {}):
        if label in own_labels:
            yield f'{path}.labels["{label}"]: is set by StreamServe: use another label'
    for index, volume in enumerate(given.get("volumes", ())):
        if volume.get("name") in _OWN_VOLUMES:
            yield f"{path}.volumes[{index}].name: {volume['name']} is a volume of StreamServe: use another name"
    for index, mount in enumerate(given.get("volumeMounts", ())):
        place = str(mount.get("mountPath", "")).rstrip("/")
        if place == "/tmp" or any(place == own or place.startswith(f"{own}/") for own in _OWN_PATHS):
            yield f"{path}.volumeMounts[{index}].mountPath: {place} is StreamServe's own: use another place"
