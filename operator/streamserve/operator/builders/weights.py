"""Where a pod finds its model and its draft: names for the command line, and the volumes and token they need.

    source                     --model                     how it gets there
    none                       the name                    it is in the image, or in a volume of the template
    hub                        the name                    downloaded at start, with a token from a Secret
    persistentVolumeClaim      /models/target, or the      mounted there, read-only
    hostPath                   name if it is a path

A draft without a source of its own takes the model's: the hub's token, or a folder inside the model's volume that its
name tells relative to it. A claim is mounted read-only also because its files then keep their owner (fsGroup would
change them).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from streamserve.contract.streampair import StreamPairSpec
from streamserve.contract.streampair.workers import SecretRef, Source

MODEL_PATH: Final = "/models/target"
DRAFT_PATH: Final = "/models/draft"
TOKEN_VARIABLE: Final = "HF_TOKEN"
VOLUMES: Final = ("model", "draft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    model: str
    draft: str | None
    volumes: tuple[dict[str, Any], ...]
    mounts: tuple[dict[str, Any], ...]
    token: SecretRef | None
    offline: bool


def weights(spec: StreamPairSpec) -> Weights:
    """What the pods of both roles need: they load the same models."""
    model, draft = spec.model, spec.speculation.draft
    model_path = _mounted_at(model.name, model.source, MODEL_PATH)
    draft_name = draft_path = None
    if draft is not None:
        draft_path = _mounted_at(draft.name, draft.source, DRAFT_PATH)
        draft_name = draft_path or _beside(draft.name, draft.source, model_path)
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for name, path, source in (
        ("model", model_path, model.source),
        ("draft", draft_path, draft.source if draft else None),
    ):
        if path is not None and source is not None:
            volume, mount = _volume(name, path, source)
            volumes.append(volume)
            mounts.append(mount)
    return Weights(
        model=model_path or model.name,
        draft=draft_name,
        volumes=tuple(volumes),
        mounts=tuple(mounts),
        token=next(iter(tokens(spec)), None),
        offline=not any(source.hub for source in _sources(spec)),
    )


def tokens(spec: StreamPairSpec) -> list[SecretRef]:
    """The different tokens that the sources name; a pod has room for one."""
    found = [source.hub.token_secret for source in _sources(spec) if source.hub and source.hub.token_secret]
    return [token for index, token in enumerate(found) if token not in found[:index]]


def _sources(spec: StreamPairSpec) -> Iterator[Source]:
    draft = spec.speculation.draft
    for source in (spec.model.source, draft.source if draft else None):
        if source is not None:
            yield source


def _mounted_at(name: str, source: Source | None, otherwise: str) -> str | None:
    """The mount point of a volume source; None for a source that is no volume."""
    if source is None or not (source.persistent_volume_claim or source.host_path):
        return None
    return name if name.startswith("/") else otherwise


def _beside(name: str, source: Source | None, model_path: str | None) -> str:
    """A draft without a source of its own, where the model's is a volume: a folder in it."""
    if source is not None or model_path is None or name.startswith("/"):
        return name
    return f"{model_path}/{name.removeprefix('./')}"


def _volume(name: str, path: str, source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    mount: dict[str, Any] = {"name": name, "mountPath": path, "readOnly": True}
    if source.persistent_volume_claim is not None:
        claim = source.persistent_volume_claim
        if claim.sub_path:
            mount["subPath"] = claim.sub_path
        return {"name": name, "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}, mount
    if source.host_path is None:
        raise ValueError("a volume source is a claim or a path of the node")
    return {"name": name, "hostPath": {"path": source.host_path.path, "type": "Directory"}}, mount
