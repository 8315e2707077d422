"""Actions carried out, one request each, in the order of the decision.

    Apply, object not there    looked for by name first; what is found is no news to be overwritten but to be decided on
                               (`found`). Then applied unforced: a stranger that was faster keeps what it holds.
                               With a seed: made under the seed's manager, seed included, then taken over.
    Apply, object there        server-side apply, forced. Ports that a hand has edited are replaced by a patch before it
    Rehearse                   server-side apply as a dry run. A full quota is no refusal, for a pod will leave first,
                               nor is a webhook that takes no dry runs
    Drain                      merge patch of two annotations, with the pod's uid
    SetGate                    strategic merge patch of one condition of the pod's status, with the uid
    Delete                     with the uid as a precondition; propagation in the background

Not there any more (404, 410), or another object by now (409 with a uid): the action is over, the watch will tell. A
write that is refused for good is remembered (`rejected`) and told in a condition; the rest of the decision goes on,
but for what would be made by halves (`refusals.py`). While an object was found that the decision knew nothing of, no
pod is made and none is given up. Anything else ends the reconcile, which is tried again; a server that fails, or does
not answer, says at which object.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from streamserve.operator import naming
from streamserve.operator.actions import Action, Apply, Delete, Drain, Rehearse, SetGate
from streamserve.operator.edge.api import MERGE, STRATEGIC, Api
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import Conflict, Failing, Gone, NotFound, Refused
from streamserve.operator.edge.resources import BY_KIND
from streamserve.operator.edge.store import Store
from streamserve.operator.naming import FIELD_MANAGER, Manifest
from streamserve.operator.refusals import Name, Write, makes_or_gives_up_a_pod, write_of
from streamserve.runtime import logs

SEED_MANAGER: Final = f"{FIELD_MANAGER}-seed"
_NO_REFUSAL: Final = ("quota", "does not support dry run")
_log = logs.get(__name__)


@dataclass(slots=True)
class Carried:
    """What carrying out a decision brought to light.

    `found`: objects that the watch does not show. `rejected`: what the server said to a write that it refuses for good,
    and to be written again only after a while.
    """

    found: dict[Name, Manifest] = field(default_factory=dict)
    rejected: dict[Write, str] = field(default_factory=dict)
    written: int = 0


class Applier:
    def __init__(self, api: Api, store: Store, metrics: OperatorMetrics, utc_now: Callable[[], datetime]) -> None:
        self._api = api
        self._store = store
        self._metrics = metrics
        self._utc_now = utc_now

    async def carry_out(
        self,
        namespace: str,
        actions: Iterable[Action],
        shown: Set[Name],
        result: Carried,
        held_back: Callable[[Action, Collection[Write]], bool],
        refused: Collection[Write] = (),
    ) -> None:
        """`shown`: the objects that were seen when it was decided. `refused`: what need not be tried again yet.
        `result` tells what was done, also where this raises a Retryable ApiError or NotLeader.
        """
        for action in actions:
            name = (action.kind, action.name)
            if write_of(action) in refused or held_back(action, {*refused, *result.rejected}):
                continue
            if result.found and makes_or_gives_up_a_pod(action):
                continue
            try:
                wrote = await self._one(namespace, action, name in shown, result)
            except Failing as error:
                said = f"{action.kind} {action.name}: {error.message}"
                raise type(error)(said, status=error.status, retry_after_seconds=error.retry_after_seconds) from error
            except (Refused, NotFound, Gone) as error:
                result.rejected[write_of(action)] = error.message
                _log.warning("%s %s/%s is refused: %s", action.kind, namespace, action.name, error.message)
                continue
            if wrote:
                result.written += 1
                self._metrics.wrote(action.kind, action.reason.value)
                _log.info(
                    "%s %s %s/%s",
                    type(action).__name__.lower(),
                    action.kind,
                    namespace,
                    action.name,
                    extra={"reason": action.reason.value, "detail": getattr(action, "detail", "")},
                )

    async def look(self, namespace: str, name: Name) -> Manifest | None:
        """An object as it is now, whoever's it is. Raises a Retryable ApiError."""
        try:
            return await self._api.get(BY_KIND[name[0]].path(namespace, name[1]))
        except (NotFound, Gone):
            return None

    async def _one(self, namespace: str, action: Action, shown: bool, result: Carried) -> bool:
        if isinstance(action, Apply):
            return await self._apply(namespace, action, shown, result)
        if isinstance(action, Rehearse):
            return await self._rehearse(namespace, action)
        try:
            match action:
                case Drain():
                    await self._drain(namespace, action)
                case SetGate():
                    await self._gate(namespace, action)
                case Delete():
                    await self._delete(namespace, action)
        except (NotFound, Gone):
            return False
        except Conflict as error:
            _log.info("%s %s/%s is another object by now: %s", action.kind, namespace, action.name, error)
            return False
        return True

    async def _apply(self, namespace: str, action: Apply, shown: bool, result: Carried) -> bool:
        path = BY_KIND[action.kind].path(namespace, action.name)
        if shown:
            if action.first is not None:
                await self._api.send("PATCH", path, action.first, content=STRATEGIC)
            self._store.put(await self._api.apply(path, action.manifest))
            return True
        present = await self.look(namespace, (action.kind, action.name))
        if present is not None:
            result.found[action.kind, action.name] = present
            return False
        if action.seed is not None:
            whole = {**action.manifest, **{key: {**action.manifest[key], **action.seed[key]} for key in action.seed}}
            await self._api.apply(path, whole, manager=SEED_MANAGER, force=False)
        self._store.put(await self._api.apply(path, action.manifest, force=False))
        return True

    async def _rehearse(self, namespace: str, action: Rehearse) -> bool:
        try:
            await self._api.rehearse(BY_KIND[action.kind].path(namespace, action.name), action.manifest)
        except Refused as error:
            if not any(each in error.message for each in _NO_REFUSAL):
                raise
        return False

    async def _drain(self, namespace: str, action: Drain) -> None:
        notes = {naming.DRAIN: action.reason.value, naming.DRAIN_SINCE: action.since}
        body = {"metadata": {"uid": action.uid, "annotations": notes}}
        path = BY_KIND["Pod"].path(namespace, action.name)
        self._store.put(await self._api.send("PATCH", path, body, content=MERGE))

    async def _gate(self, namespace: str, action: SetGate) -> None:
        now = self._utc_now().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        condition = {
            "type": naming.LANE_READY,
            "status": "True" if action.ready else "False",
            "reason": action.reason.value,
            "message": action.detail,
            "lastTransitionTime": now,
        }
        body = {"metadata": {"uid": action.uid}, "status": {"conditions": [condition]}}
        path = BY_KIND["Pod"].path(namespace, action.name, "status")
        self._store.put(await self._api.send("PATCH", path, body, content=STRATEGIC))

    async def _delete(self, namespace: str, action: Delete) -> None:
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": action.uid},
            "propagationPolicy": "Background",
        }
        if action.grace_seconds is not None:
            body["gracePeriodSeconds"] = action.grace_seconds
        await self._api.send("DELETE", BY_KIND[action.kind].path(namespace, action.name), body)
