"""The cache: what the watches have shown, found again by StreamPair.

Objects are kept as JSON text, cut down to what decisions read: as Python objects they would take several times the
memory, and a reconcile parses some fifteen of them in less than a millisecond. What is cut away (managed fields, most
of a pod's spec) is nothing that a decision compares. Whether an event is news is told by that text: an event that
changes none of it, or one that is older than what a write has already answered, makes nothing dirty.

Older is what has a lower resourceVersion. A listing is of a moment after it began, so it is right about everything that
has not changed here since, at whatever version: those of an etcd that was restored from a backup are lower.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from streamserve.contract.streampair import KIND
from streamserve.operator import naming
from streamserve.operator.builders import scalers
from streamserve.operator.naming import Manifest

Key = tuple[str, str]
"""(namespace, name) of a StreamPair."""
Id = tuple[str, str, str]
"""(kind, namespace, name) of any object."""

_REMEMBERED: Final = 4_096
_DROPPED: Final = frozenset({"managedFields", "selfLink"})
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_POD_STATUS: Final = ("phase", "podIP", "conditions")
_CONTAINER_STATUS: Final = ("name", "ready", "restartCount", "state", "lastState")
_FAILURE: Final = ("type", "status", "reason", "message")


@dataclass(frozen=True, slots=True)
class _Kept:
    text: bytes
    version: int
    uid: str
    generation: int
    pair: str


@dataclass(frozen=True, slots=True)
class Change:
    """`key` is whom it concerns; `new_spec`: a StreamPair of another uid or generation than before."""

    key: Key
    new_spec: bool = False


class Store:
    """Everything of ours in the watched namespaces."""

    def __init__(self) -> None:
        self._objects: dict[Id, _Kept] = {}
        self._by_pair: dict[Key, set[Id]] = {}
        self._gone: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, body: Manifest, *, before: Mapping[Id, int] | None = None, says_more: bool = False) -> Change | None:
        """Take an object as it is now. None where that is no news.

        `before`: it was listed, and these `versions` were here when the listing began. One that `says_more` may do so
        at the version that is known: a watch that began before its CRD was upgraded leaves out the fields that are new,
        and a listing does not.
        """
        id_ = id_of(body)
        metadata = body["metadata"]
        version = int(metadata.get("resourceVersion") or 0)
        old = self._objects.get(id_)
        known = old.version if old is not None else None
        if version and version == known and not says_more:
            return None
        seen = self._gone.get(str(metadata.get("uid", "")), 0) if known is None else known
        unchanged_since = before is not None and before.get(id_) == known
        if version and not unchanged_since and (version < seen or (version == seen and known is None)):
            return None
        pair = pair_of(body)
        kept = _Kept(
            text=json.dumps(slim(body), separators=(",", ":"), sort_keys=True).encode(),
            version=version,
            uid=str(metadata.get("uid", "")),
            generation=int(metadata.get("generation") or 0),
            pair=pair,
        )
        self._objects[id_] = kept
        key = (id_[1], pair)
        if old is not None and old.pair != pair:
            self._unindex(id_, old)
        self._by_pair.setdefault(key, set()).add(id_)
        if old is not None and old.text == kept.text:
            return None
        is_pair = id_[0] == KIND
        return Change(key, is_pair and (old is None or (old.uid, old.generation) != (kept.uid, kept.generation)))

    def remove(self, body: Manifest) -> Change | None:
        """An object is gone. One of the same name that came after it stays."""
        old = self._objects.get(id_of(body))
        uid = body["metadata"].get("uid", "")
        if old is None or (uid and old.uid != uid):
            return None
        return self._drop(id_of(body), int(body["metadata"].get("resourceVersion") or 0))

    def versions(self, kind: str, namespace: str | None) -> dict[Id, int]:
        """What is here of one kind; take it before a listing begins, for `keep_only`."""
        return {
            id_: kept.version
            for id_, kept in self._objects.items()
            if id_[0] == kind and (namespace is None or id_[1] == namespace)
        }

    def keep_only(self, before: Mapping[Id, int], listed: Set[Id]) -> list[Change]:
        """A listing is complete: what was here before it, and neither it shows nor anything since, went away unseen.
        What an answer to a write has brought meanwhile may be younger than the listing."""
        gone = [
            id_
            for id_, version in before.items()
            if id_ not in listed and id_ in self._objects and self._objects[id_].version == version
        ]
        return [self._drop(id_) for id_ in gone]

    def has(self, key: Key) -> bool:
        return (KIND, *key) in self._objects

    def pair(self, key: Key) -> Manifest | None:
        return self.get((KIND, *key))

    def get(self, id_: Id) -> Manifest | None:
        kept = self._objects.get(id_)
        return None if kept is None else self._read(id_, kept)

    def children(self, key: Key) -> Iterator[Manifest]:
        """Everything that names the pair, the pair itself left out."""
        for id_ in sorted(self._by_pair.get(key, ())):
            if id_[0] != KIND:
                yield self._read(id_, self._objects[id_])

    def pairs(self) -> list[Key]:
        return [(id_[1], id_[2]) for id_ in self._objects if id_[0] == KIND]

    def inhabited(self) -> set[str]:
        """Namespaces with a StreamPair, or with pods of one that is gone."""
        found: set[str] = set()
        for key, ids in self._by_pair.items():
            namespace, pair = key
            if pair and namespace not in found and (self.has(key) or any(id_[0] == "Pod" for id_ in ids)):
                found.add(namespace)
        return found

    def _drop(self, id_: Id, version: int = 0) -> Change:
        """An answer to a write may be read after the event that its object is gone: it is older. Newer ones count, for
        an object that only lost our label is gone for the watch as well."""
        old = self._objects.pop(id_)
        self._unindex(id_, old)
        self._gone[old.uid] = max(version, old.version)
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        return Change((id_[1], old.pair))

    def _unindex(self, id_: Id, old: _Kept) -> None:
        key = (id_[1], old.pair)
        if found := self._by_pair.get(key):
            found.discard(id_)
            if not found:
                del self._by_pair[key]

    def _read(self, id_: Id, kept: _Kept) -> Manifest:
        found: Manifest = json.loads(kept.text)
        return found


def id_of(body: Mapping[str, Any]) -> Id:
    metadata = body["metadata"]
    return (str(body["kind"]), str(metadata.get("namespace", "")), str(metadata["name"]))


def pair_of(body: Mapping[str, Any]) -> str:
    """The StreamPair that an object is about: itself, or the one its owner or its label names."""
    metadata = body["metadata"]
    if body["kind"] == KIND:
        return str(metadata["name"])
    for reference in metadata.get("ownerReferences", ()):
        if reference.get("controller") and reference.get("kind") == KIND:
            return str(reference["name"])
    return str(metadata.get("labels", {}).get(naming.PAIR, ""))


def slim(body: Manifest) -> Manifest:
    """What decisions look at. Without the resourceVersion: it changes with everything else."""
    metadata = {key: value for key, value in body["metadata"].items() if key not in _DROPPED}
    metadata.pop("resourceVersion", None)
    if _LAST_APPLIED in metadata.get("annotations", {}):
        kept = {key: value for key, value in metadata["annotations"].items() if key != _LAST_APPLIED}
        metadata["annotations"] = kept
    made: Manifest = {**body, "metadata": metadata}
    if body["kind"] == "Pod":
        made["spec"], made["status"] = _pod_spec(body.get("spec", {})), _pod_status(body.get("status", {}))
    elif body["kind"] == "Deployment":
        made["status"] = _deployment_status(body.get("status", {}))
    elif body["kind"] not in (KIND, scalers.KIND):
        made.pop("status", None)
    return made


def _pod_spec(spec: Manifest) -> Manifest:
    containers = [
        {key: container[key] for key in ("name", "image", "args") if key in container}
        for container in spec.get("containers", ())[:1]
    ]
    made = {"terminationGracePeriodSeconds": spec.get("terminationGracePeriodSeconds", 30), "containers": containers}
    return made | ({"nodeName": spec["nodeName"]} if "nodeName" in spec else {})


def _pod_status(status: Manifest) -> Manifest:
    made: Manifest = {key: status[key] for key in _POD_STATUS if key in status}
    made["containerStatuses"] = [
        {key: found[key] for key in _CONTAINER_STATUS if key in found} for found in status.get("containerStatuses", ())
    ]
    return made


def _deployment_status(status: Manifest) -> Manifest:
    """How many pods are ready, and why none can be made; its other conditions change with every rollout."""
    failures = [
        {key: found[key] for key in _FAILURE if key in found}
        for found in status.get("conditions", ())
        if found["type"] == "ReplicaFailure"
    ]
    made: Manifest = {"readyReplicas": status["readyReplicas"]} if status.get("readyReplicas") else {}
    return made | ({"conditions": failures} if failures else {})
