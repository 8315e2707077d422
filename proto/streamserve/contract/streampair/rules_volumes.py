"""Rules about the volumes of a pod: which are ours, that a mount has a volume and a place of its own.

Names and places are ours whether or not a pod has them today: TLS, tokens and a draft come and go with settings.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from streamserve.contract.streampair.fields import Path
from streamserve.contract.streampair.policies import Draft
from streamserve.contract.streampair.resource import StreamPairSpec
from streamserve.contract.streampair.rule import Cel, Entry, Rule, here, literal, never
from streamserve.contract.streampair.rules_pods import TEMPLATES, each_item, each_once, whole
from streamserve.contract.streampair.workers import HostPathSource, ModelSpec, Template, VolumeClaimSource

OWNED_VOLUMES = ("config", "tmp", "shm", "tls", "tokens", "model", "draft")
OWNED_PATHS = re.compile(r"/(tmp|(etc/streamserve|dev/shm|models/(target|draft))(/.*)?)")
"""/tmp alone may have mounts in it."""
PLAIN_PATH = re.compile(r"(/([^/.]|[.][^/.]|[.][.][^/])[^/]*)+")
"""One spelling for each place, so that two places can be compared as texts: no part is empty, '.' or '..'."""
_PLAIN_MESSAGE = "is no plain path: write it without '.', '..' and empty parts, and without '/' at its end"

WEIGHTS: Mapping[Path, str] = {
    ("spec", "model"): "/models/target",
    ("spec", "speculation", "draft"): "/models/draft",
}
"""Model and draft, and where their volumes are mounted if a name is no path."""
SOURCES: tuple[Path, ...] = tuple((*scope, "source") for scope in WEIGHTS)

_MOUNTABLE: Mapping[str, tuple[str, ...]] = {
    "prefill": ("config", "tmp", "shm"),
    "decode": ("config", "tmp", "shm"),
    "router": ("config", "tmp"),
}
"""Volumes of ours that every pod has."""

_INSIDE = "!self.subPath.startsWith('/') && !self.subPath.matches('(^|/)[.][.](/|$)')"
_INSIDE_MESSAGE = "leaves the volume: write a path inside it, without '/' in front and without '..'"


def _goes_up(path: str) -> bool:
    return ".." in path.split("/")


def _is_inside(sub_path: str) -> bool:
    return not sub_path.startswith("/") and not _goes_up(sub_path)


def _unknown_mounts(ours: tuple[str, ...]) -> Callable[[Template], list[Entry]]:
    return lambda template: [
        Entry(("volumeMounts", index, "name"), mount.name)
        for index, mount in enumerate(template.volume_mounts)
        if mount.name not in ours and mount.name not in [volume.name for volume in template.volumes]
    ]


def _unknown_mount(ours: tuple[str, ...]) -> str:
    return f"!(m.name in {literal(ours)}) && !self.volumes.exists(v, v.name == m.name)"


def _is_mounted(weights: ModelSpec | Draft | None) -> bool:
    """Whether these are in a volume that is mounted where their name says."""
    source = weights.source if weights else None
    in_volume = source is not None and bool(source.persistent_volume_claim or source.host_path)
    return weights is not None and in_volume and weights.name.startswith("/")


def _weights(spec: StreamPairSpec) -> list[str]:
    """Where volumes with weights are mounted by a name that is a path."""
    return [each.name for each in (spec.model, spec.speculation.draft) if each is not None and _is_mounted(each)]


def _over_weights(spec: StreamPairSpec) -> Iterator[Entry]:
    taken = _weights(spec)
    for role, template in (("prefill", spec.prefill.template), ("decode", spec.decode.template)):
        for index, mount in enumerate(template.volume_mounts):
            if mount.mount_path in taken:
                yield Entry((role, "template", "volumeMounts", index, "mountPath"), mount.mount_path)


def _is_volume(source: str) -> str:
    return f"has({source}) && (has({source}.persistentVolumeClaim) || has({source}.hostPath))"


def _mounted(weights: str) -> str:
    return f"{_is_volume(f'{weights}.source')} && {weights}.name.startsWith('/')"


_TAKEN = (
    f"({_is_volume('self.model.source')} && self.model.name == m.mountPath) || (has(self.speculation.draft) && "
    f"{_is_volume('self.speculation.draft.source')} && self.speculation.draft.name == m.mountPath)"
)


def _not_ours(scope: Path, place: str) -> Rule[ModelSpec | Draft]:
    """Weights may be mounted at a path of their own choice, and at the place that is kept for them."""
    return Rule[ModelSpec | Draft](
        id="weights-path-not-ours",
        scope=scope,
        at=here("name"),
        holds=lambda weights: (
            not _is_mounted(weights) or weights.name == place or OWNED_PATHS.fullmatch(weights.name) is None
        ),
        message="{path} is StreamServe's own, so no volume can be mounted there: use another place",
        values=lambda weights: {"path": weights.name},
        cel=(
            Cel(
                f"!({_mounted('self')}) || self.name == {literal(place)} || !self.name.matches({whole(OWNED_PATHS)})",
                {"path": "self.name"},
                at=("name",),
            ),
        ),
    )


RULES: tuple[Rule[Any], ...] = (
    *each_item(
        "volume-not-ours",
        ("volumes", "[]"),
        "name",
        lambda volume: volume.name not in OWNED_VOLUMES,
        f"!(self.name in {literal(OWNED_VOLUMES)})",
        "{name} is a volume of StreamServe: use another name",
        {"name": "name"},
    ),
    *each_once("volume-names-unique", "volumes", "name", "name", "'{name}' is listed twice: remove one"),
    *(
        Rule[Entry](
            id="mount-of-a-volume",
            scope=scope,
            each=_unknown_mounts(_MOUNTABLE[str(scope[1])]),
            at=lambda entry: entry.at,
            holds=never,
            message=(
                "'{name}' is no volume of this template: add it to volumes, "
                f"under another name if it is one of {', '.join(OWNED_VOLUMES)}"
            ),
            values=lambda entry: {"name": entry.value},
            cel=(
                Cel(
                    f"!self.volumeMounts.exists(m, {_unknown_mount(_MOUNTABLE[str(scope[1])])})",
                    {"name": "found.name"},
                    found=f"self.volumeMounts.filter(m, {_unknown_mount(_MOUNTABLE[str(scope[1])])})[0]",
                    at=("volumeMounts",),
                ),
            ),
        )
        for scope in TEMPLATES
    ),
    *each_item(
        "mount-path-not-ours",
        ("volumeMounts", "[]"),
        "mountPath",
        lambda mount: OWNED_PATHS.fullmatch(mount.mount_path) is None,
        f"!self.mountPath.matches({whole(OWNED_PATHS)})",
        "{path} is StreamServe's own: use another place",
        {"path": "mountPath"},
    ),
    *each_item(
        "mount-path-plain",
        ("volumeMounts", "[]"),
        "mountPath",
        lambda mount: PLAIN_PATH.fullmatch(mount.mount_path) is not None,
        f"self.mountPath.matches({whole(PLAIN_PATH)})",
        _PLAIN_MESSAGE,
    ),
    *(
        Rule[ModelSpec | Draft](
            id="mount-path-plain",
            scope=scope,
            at=here("name"),
            holds=lambda weights: not _is_mounted(weights) or PLAIN_PATH.fullmatch(weights.name) is not None,
            message=_PLAIN_MESSAGE,
            cel=(Cel(f"!({_mounted('self')}) || self.name.matches({whole(PLAIN_PATH)})", at=("name",)),),
        )
        for scope in WEIGHTS
    ),
    *(_not_ours(scope, place) for scope, place in WEIGHTS.items()),
    Rule[StreamPairSpec](
        id="weights-apart",
        scope=("spec",),
        at=here("speculation", "draft", "name"),
        holds=lambda spec: len(_weights(spec)) == len({*_weights(spec)}),
        message="{path} is where the model is mounted: use another place",
        values=lambda spec: {"path": spec.model.name},
        cel=(
            Cel(
                f"!({_mounted('self.model')} && has(self.speculation.draft) && {_mounted('self.speculation.draft')} && "
                "self.model.name == self.speculation.draft.name)",
                {"path": "self.model.name"},
                at=("speculation", "draft", "name"),
            ),
        ),
    ),
    *each_once("mount-paths-unique", "volumeMounts", "mountPath", "path", "{path} has two mounts: remove one"),
    Rule[Entry](
        id="mount-not-over-weights",
        scope=("spec",),
        each=_over_weights,
        at=lambda entry: entry.at,
        holds=never,
        message="{path} is where the weights are mounted: use another place",
        values=lambda entry: {"path": entry.value},
        cel=tuple(
            Cel(
                f"!self.{role}.template.volumeMounts.exists(m, {_TAKEN})",
                {"path": "found.mountPath"},
                found=f"self.{role}.template.volumeMounts.filter(m, {_TAKEN})[0]",
                at=(role, "template", "volumeMounts"),
            )
            for role in ("prefill", "decode")
        ),
    ),
    *each_item(
        "sub-path-inside",
        ("volumeMounts", "[]"),
        "subPath",
        lambda mount: _is_inside(mount.sub_path),
        _INSIDE,
        _INSIDE_MESSAGE,
    ),
    *(
        Rule[VolumeClaimSource](
            id="sub-path-inside",
            scope=(*scope, "persistentVolumeClaim"),
            at=here("subPath"),
            holds=lambda claim: _is_inside(claim.sub_path),
            message=_INSIDE_MESSAGE,
            cel=(Cel(_INSIDE, at=("subPath",)),),
        )
        for scope in SOURCES
    ),
    *(
        Rule[HostPathSource](
            id="host-path-not-upwards",
            scope=(*scope, "hostPath"),
            at=here("path"),
            holds=lambda place: not _goes_up(place.path),
            message="goes upwards: write the path without '..'",
            cel=(Cel("!self.path.matches('(^|/)[.][.](/|$)')", at=("path",)),),
        )
        for scope in SOURCES
    ),
)
