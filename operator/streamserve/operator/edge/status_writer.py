"""The status of StreamPairs and scalers, and the Events: what the operator says rather than does.

A status is applied whole to the status subresource, under our field manager and with the uid, so a field that is not
decided any more goes away and a successor of the same name is not spoken of. An Event is posted after the status that
it tells of: its name is made from what it says, so that a retry is the same Event. None is ever worth a retry.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from streamserve.contract.streampair import API_VERSION
from streamserve.operator import naming
from streamserve.operator.conditions import Condition
from streamserve.operator.edge.api import Api
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ApiError, Conflict, NotFound
from streamserve.operator.edge.resources import BY_KIND, EVENT
from streamserve.operator.edge.store import Store, slim
from streamserve.operator.naming import FIELD_MANAGER, Manifest
from streamserve.runtime import logs

_MAX_NOTE_LENGTH: Final = 1_024
_log = logs.get(__name__)


class StatusWriter:
    def __init__(self, api: Api, store: Store, metrics: OperatorMetrics, utc_now: Callable[[], datetime]) -> None:
        self._api = api
        self._store = store
        self._metrics = metrics
        self._utc_now = utc_now

    async def write(self, live: Manifest, status: dict[str, Any]) -> bool:
        """Of a StreamPair or a scaler. Gone, or another one by now: nothing to say. Raises other ApiErrors.

        True where the answer shows that it is not as it was when `live` was read: the watch's own event of that change
        is older than the answer, so it will be no news.
        """
        metadata, kind = live["metadata"], live["kind"]
        identity = {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": identity, "status": status}
        path = BY_KIND[kind].path(metadata["namespace"], metadata["name"], "status")
        try:
            answer = await self._api.apply(path, body)
        except (NotFound, Conflict) as error:
            _log.info("no status for %s %s/%s: %s", kind, metadata["namespace"], metadata["name"], error)
            return False
        self._store.put(answer)
        self._metrics.wrote(kind, "Status")
        return _but_for_status(answer) != _but_for_status(live)

    async def tell(self, live: Manifest, told: Iterable[Condition]) -> None:
        """One Event for each condition that changed. Never raises an ApiError."""
        for condition in told:
            try:
                await self._api.send("POST", EVENT.path(live["metadata"]["namespace"]), self.event(live, condition))
            except Conflict:
                continue
            except ApiError as error:
                _log.info("an event was not taken: %s", error)
                continue
            self._metrics.wrote(EVENT.kind, condition.type)

    def event(self, live: Manifest, condition: Condition) -> Manifest:
        metadata = live["metadata"]
        now = self._utc_now().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        said = [metadata["uid"], condition.type, condition.status, condition.reason, condition.since]
        # Without a change of status the time stays: the generation tells such an Event from the one before.
        digest = naming.fingerprint([*said, condition.generation])
        about = {
            "apiVersion": API_VERSION,
            "kind": live["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        }
        warns = (condition.type, condition.status) == ("Degraded", "True")
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata["namespace"]},
            "involvedObject": about,
            "type": "Warning" if warns else "Normal",
            "reason": condition.reason,
            "message": f"{condition.type} is {condition.status}: {condition.message}"[:_MAX_NOTE_LENGTH],
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": socket.gethostname()[:128],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _but_for_status(body: Manifest) -> Manifest:
    return {**slim(body), "status": None}
