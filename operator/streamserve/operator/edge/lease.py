"""Who of several operators writes: the one whose name is in the Lease, for as long as it renews it.

    held by nobody, or released            take it
    held by us                             renew it every `retry_seconds`
    held by another                        take it once the record has not changed for `duration_seconds`, as we saw it

All on our own clock: no two machines' times are compared. A write carries the resourceVersion that it read, so of two
that take it at once one is refused. What we may do with it is the fence's to say; it stands `renew_deadline_seconds`
from the start of the renewal, which is less than the duration.

A leader that does not work must not keep the Lease: `healthy` is asked before each write, and while it gives a reason
nothing is renewed. A loop that stood still because it led may look well again once it does not, so who lost the Lease
that way leaves it to others for as long as they need to see it run out and take it. Losing the Lease ends no process:
watches stay warm, writing stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from streamserve.operator.edge.api import Api
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.outcomes import ApiError, NotFound
from streamserve.operator.edge.resources import LEASE
from streamserve.operator.naming import FIELD_MANAGER
from streamserve.runtime import logs

DURATION_SECONDS: Final = 15.0
RENEW_DEADLINE_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 2.0
_log = logs.get(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseSettings:
    """`identity` is this process alone's, on this machine and at this start."""

    namespace: str
    name: str
    identity: str
    duration_seconds: float = DURATION_SECONDS
    renew_deadline_seconds: float = RENEW_DEADLINE_SECONDS
    retry_seconds: float = RETRY_SECONDS

    def __post_init__(self) -> None:
        if not self.retry_seconds < self.renew_deadline_seconds < self.duration_seconds:
            raise ValueError("the lease needs retry < renew deadline < duration")


@dataclass(frozen=True, slots=True)
class Record:
    """A Lease as read: whose it is, and what tells one renewal from the next."""

    holder: str
    stamp: tuple[str, str]
    duration_seconds: float

    @staticmethod
    def of(lease: Mapping[str, Any], default_seconds: float) -> Record:
        spec = lease.get("spec", {})
        stamp = (str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or ""))
        return Record(stamp[0], stamp, float(spec.get("leaseDurationSeconds") or default_seconds))


class Election:
    """Whether the Lease is ours to write. Keeps when a record was first seen, on the caller's clock."""

    def __init__(self, settings: LeaseSettings) -> None:
        self._settings = settings
        self._seen: tuple[str, str] | None = None
        self._since = 0.0

    def may_take(self, record: Record, now: float) -> bool:
        """True for one that is ours, free, or has not been renewed for as long as its holder promised to."""
        if record.stamp != self._seen:
            self._seen, self._since = record.stamp, now
        if record.holder in ("", self._settings.identity):
            return True
        wait = max(record.duration_seconds, self._settings.duration_seconds)
        return now - self._since >= wait


class Elector:
    """Runs the election, and raises the fence while it is won."""

    def __init__(
        self,
        api: Api,
        fence: Fence,
        settings: LeaseSettings,
        *,
        healthy: Callable[[], str | None],
        rng: Random,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._fence = fence
        self._settings = settings
        self._healthy = healthy
        self._rng = rng
        self._utc_now = utc_now
        self._election = Election(settings)
        self._abstains_until = float("-inf")
        self.leads = asyncio.Event()
        self.answered_at = float("-inf")
        self.holder = ""

    async def run(self) -> None:
        """Until cancelled. `leads` is set while the fence is up."""
        while True:
            await self.step()
            wait = self._settings.retry_seconds
            if not self.leads.is_set():
                wait *= self._rng.uniform(0.8, 1.2)
            # A fence that falls between two steps is told at once, for others to stop what they are at.
            if self.leads.is_set() and self._fence.left_seconds < wait:
                await asyncio.sleep(max(0.0, self._fence.left_seconds))
                self._tell()
            else:
                await asyncio.sleep(wait)

    async def step(self) -> None:
        """Look at the Lease and take or renew it where that is ours to do. Never raises an ApiError."""
        try:
            async with asyncio.timeout(self._settings.renew_deadline_seconds):
                await self._take_or_renew()
        except (ApiError, TimeoutError) as error:
            _log.warning("the lease could not be renewed: %s", error or "no answer in time")
        self._tell()

    async def release(self) -> None:
        """Give it up, so that another need not wait. Only after the last write."""
        was_up = self._fence.is_up
        self._fence.lower()
        self._tell()
        if not was_up:
            return
        try:
            lease = await self._api.get(LEASE.path(self._settings.namespace, self._settings.name))
            if Record.of(lease, 0.0).holder == self._settings.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._put(lease)
        except ApiError as error:
            _log.info("the lease runs out by itself: %s", error)

    async def _take_or_renew(self) -> None:
        began = self._fence.now()
        try:
            lease = await self._api.get(LEASE.path(self._settings.namespace, self._settings.name))
        except NotFound:
            self.answered_at = self._fence.now()
            if self._abstains():
                return
            await self._api.send("POST", LEASE.path(self._settings.namespace), self._fresh(), unfenced=True)
        else:
            self.answered_at = self._fence.now()
            record = Record.of(lease, self._settings.duration_seconds)
            self.holder = record.holder
            if not self._election.may_take(record, self._fence.now()):
                self._fence.lower()
                return
            if self._abstains():
                return
            began = self._fence.now()
            lease["spec"] = self._spec(lease.get("spec", {}), record.holder)
            await self._put(lease)
        self.holder = self._settings.identity
        self._tell()
        self._fence.raise_until(began + self._settings.renew_deadline_seconds)

    def _abstains(self) -> bool:
        now = self._fence.now()
        if reason := self._healthy():
            _log.error("not taking or renewing the lease: %s", reason)
            self._abstains_until = now + self._settings.duration_seconds + 2 * self._settings.retry_seconds
            return True
        return not self._fence.is_up and now < self._abstains_until

    async def _put(self, lease: dict[str, Any]) -> None:
        path = LEASE.path(self._settings.namespace, self._settings.name)
        await self._api.send("PUT", path, lease, unfenced=True, manager=FIELD_MANAGER)

    def _fresh(self) -> dict[str, Any]:
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._settings.name, "namespace": self._settings.namespace},
            "spec": self._spec({}, ""),
        }

    def _spec(self, old: Mapping[str, Any], holder: str) -> dict[str, Any]:
        time = self._utc_now().isoformat(timespec="microseconds").replace("+00:00", "Z")
        ours = holder == self._settings.identity
        changes = int(old.get("leaseTransitions") or 0)
        return {
            "holderIdentity": self._settings.identity,
            "leaseDurationSeconds": max(1, round(self._settings.duration_seconds)),
            "acquireTime": old.get("acquireTime", time) if ours else time,
            "renewTime": time,
            "leaseTransitions": changes if ours or not old else changes + 1,
        }

    def _tell(self) -> None:
        if self._fence.is_up == self.leads.is_set():
            return
        if self._fence.is_up:
            _log.info("this process leads now", extra={"identity": self._settings.identity})
            self.leads.set()
        else:
            _log.warning("this process does not lead any more", extra={"holder": self.holder})
            self.leads.clear()
