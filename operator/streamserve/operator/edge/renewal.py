"""Renews the certificates in the Secrets that the operator was told of, for as long as this process leads.

    each turn   the authority's Secret and each leaf's are read anew, by name: what others did is seen, nothing is kept
    decided     by `certificates.py`, from the certificate itself; annotations decide nothing
    written     certificate, key and the annotation with its end, with the resourceVersion that was read: whoever wrote
                meanwhile, as `helm upgrade` does, is not overwritten, and is judged by what he wrote at the next turn
    then        asleep until the earliest is due, LEAST_SECONDS to MOST_SECONDS; after a failure a backoff within that

The annotation with the names stays, so the chart's next upgrade keeps a renewed certificate as one of its own. What
goes wrong is said once, and once that it is over; it never ends the operator, for a third of a certificate's life is
left then. No log line holds a key, nor what the API server says of a body that it refuses.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any, Final

from streamserve.operator import certificates
from streamserve.operator.certificates import Authority, CertificateError, Keep, Leaf, Reason, Refuse, Renew
from streamserve.operator.edge.api import MERGE, Api
from streamserve.operator.edge.fence import NotLeader
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ApiError, Conflict, NotFound, Refused, Retryable
from streamserve.operator.edge.resources import SECRET
from streamserve.operator.edge.store import Key
from streamserve.operator.naming import Manifest
from streamserve.runtime import logs
from streamserve.runtime.backoff import Backoff

LEAST_SECONDS: Final = 1.0
MOST_SECONDS: Final = 60.0
"""`helm rollback` writes certificates back that may have expired: for so long nobody is let in. A few reads by name."""
BACKOFF_SECONDS: Final = (1.0, 60.0)
ENDS: Final = "streamserve.io/certificate-ends"
_NONE: Final = "no certificate can be renewed without it"
_log = logs.get(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalSettings:
    """Secrets, by namespace and name: who signs, and what is renewed."""

    authority: Key
    leaves: tuple[Key, ...]


class Renewal:
    """`leads` is set while this process may write."""

    def __init__(
        self,
        api: Api,
        settings: RenewalSettings,
        metrics: OperatorMetrics,
        *,
        leads: asyncio.Event,
        rng: Random,
        utc_now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._settings = settings
        self._metrics = metrics
        self._leads = leads
        self._utc_now = utc_now
        self._sleep = sleep
        self._backoff = Backoff(*BACKOFF_SECONDS, rng)
        self._troubles: dict[Key, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self._leads.is_set():
                self._metrics.certificate_ends.clear()  # the new leader's to tell from now on
                await self._leads.wait()
            await self._sleep(await self.turn())

    async def turn(self) -> float:
        """Look at every Secret once. Returns the seconds until the next look. Never raises an ApiError."""
        authority = await self._read_authority()
        failed = authority is None
        dues: list[datetime | None] = []
        for key in self._settings.leaves:
            try:
                dues.append(await self._look(key, authority))
            except NotLeader:
                return LEAST_SECONDS
            except ApiError as error:
                self._trouble(key, type(error).__name__, _remedy(error, "get and patch"))
                failed = True
        now = self._utc_now()
        waits = [(due - now).total_seconds() for due in dues if due is not None]
        if failed:
            waits.append(self._backoff.next())
        else:
            self._backoff.reset()
        return min(MOST_SECONDS, max(LEAST_SECONDS, min(waits, default=MOST_SECONDS)))

    async def _read_authority(self) -> Authority | None:
        key = self._settings.authority
        try:
            secret = await self._api.get(SECRET.path(*key))
            certificate = _entry(secret, "tls.crt")
            self._show(key, certificates.ends_at(certificate))
            authority = certificates.read_authority(certificate, _entry(secret, "tls.key"))
        except ApiError as error:
            self._trouble(key, type(error).__name__, f"{_NONE}: {_remedy(error, 'get')}")
            return None
        except CertificateError as error:
            self._trouble(key, "unusable", f"{_NONE}: {error}")
            return None
        self._well(key)
        return authority

    async def _look(self, key: Key, authority: Authority | None) -> datetime | None:
        """When it is due, as far as that is known. Raises ApiError, NotLeader."""
        secret = await self._api.get(SECRET.path(*key))
        now, certificate = self._utc_now(), _entry(secret, "tls.crt")
        self._show(key, certificates.ends_at(certificate))
        if authority is None:
            return None
        decision = certificates.decide(certificate, authority, now)
        if isinstance(decision, Refuse):
            self._trouble(key, decision.reason, decision.message)
            return None
        if isinstance(decision, Renew):
            leaf = certificates.successor(certificate, authority, now)
            await self._write(key, secret, leaf, decision.reason)
            decision = certificates.decide(leaf.certificate, authority, now)
        self._well(key)
        return decision.until if isinstance(decision, Keep) else None

    async def _write(self, key: Key, secret: Manifest, leaf: Leaf, reason: Reason) -> None:
        try:
            await self._api.send("PATCH", SECRET.path(*key), patch(secret, leaf), content=MERGE)
        except (ApiError, NotLeader) as error:
            self._metrics.certificate_renewals.labels(type(error).__name__).inc()
            raise
        self._metrics.certificate_renewals.labels("ok").inc()
        self._metrics.wrote(SECRET.kind, reason)
        self._show(key, leaf.ends)
        _log.info("renewed the certificate in Secret %s/%s (%s): it ends %s", *key, reason, _stamp(leaf.ends))

    def _show(self, key: Key, ends: datetime | None) -> None:
        if ends is not None:
            self._metrics.certificate_ends.labels("/".join(key)).set(ends.timestamp())

    def _trouble(self, key: Key, kind: str, message: str) -> None:
        if self._troubles.get(key) != kind:
            _log.warning("Secret %s/%s: %s", *key, message)
        self._troubles[key] = kind

    def _well(self, key: Key) -> None:
        if self._troubles.pop(key, None) is not None:
            _log.info("Secret %s/%s is well again", *key)


def patch(secret: Manifest, leaf: Leaf) -> dict[str, Any]:
    """The merge patch that puts `leaf` into `secret`, if that is still as it was read."""
    data = {"tls.crt": leaf.certificate, "tls.key": leaf.key}
    return {
        "metadata": {
            "resourceVersion": secret["metadata"]["resourceVersion"],
            "annotations": {ENDS: _stamp(leaf.ends)},
        },
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


def _stamp(moment: datetime) -> str:
    """As the chart writes and reads it."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _entry(secret: Manifest, name: str) -> bytes:
    """Empty for one that is missing or no base64: then it cannot be read as anything."""
    try:
        return base64.b64decode((secret.get("data") or {}).get(name, ""))
    except (binascii.Error, ValueError):
        return b""


def _remedy(error: ApiError, verbs: str) -> str:
    """What to do about it. Not in the server's words: they may repeat what was sent."""
    match error:
        case NotFound():
            return "it does not exist: `helm upgrade` makes it, or leave it out of --renew"
        case Conflict():
            return "another wrote it at the same moment; it is looked at again"
        case Refused(status=403):
            return (
                f"the operator may not {verbs} it: install the chart with rbac.create and tls.renew, "
                f"or grant its ServiceAccount {verbs} on this Secret by name"
            )
        case Retryable():
            return f"the API server does not do it ({type(error).__name__}); it is tried again"
    return f"the API server refuses it (HTTP {error.status}): see whether it is immutable, or a policy forbids it"
