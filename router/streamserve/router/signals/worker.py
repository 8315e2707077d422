"""One worker as this router tracks it: who and where it is, its newest signals, our bookings, its breaker, the client.

Identity comes from whoever says it last: the registry, the fleet file, or the worker itself (GetState). A new boot
drops everything that belonged to the old one; a client belongs to one address and boot and is closed with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

from streamserve.contract.errors import WorkerLost
from streamserve.contract.signals import Role
from streamserve.router.flowguard.view import DUE_SECONDS, NEVER, Health, KvGeometry, WorkerView
from streamserve.router.signals import breaker
from streamserve.router.signals.bookings import Ledger
from streamserve.router.signals.breaker import Breaker, Closed, Event
from streamserve.router.signals.occupancy import Occupancy
from streamserve.router.signals.store import LatestSignals, Offer
from streamserve.router.worker_client import WorkerClient
from streamserve.v1 import admin_pb2, worker_pb2

POLL_SECONDS: Final = 0.3
GONE_SECONDS: Final = 5.0
_ROLES: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE}


def role_of(name: str) -> Role | None:
    return _ROLES.get(name)


class TrackedWorker:
    """Mutable, owned by the fleet; `view()` is the frozen picture of it."""

    def __init__(
        self,
        worker_id: str,
        role: Role,
        *,
        router_id: int,
        connect: Callable[[str], WorkerClient],
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.id = worker_id
        self.role = role
        self.lane = ""
        self.revision = ""
        self.address = ""
        self.pair_uid = ""
        self.engine = ""
        self.engine_version = ""
        self.latest = LatestSignals(role)
        self.ledger = Ledger(router_id, numbers)
        self.breaker: Breaker = Closed()
        self.detail = ""
        self.kv: KvGeometry | None = None
        self.max_model_tokens = 0
        self.vocabulary_size = 0
        self.described_boot = 0
        self.in_file = False
        self.listed_at_seconds = NEVER
        self.polling = False
        self.polled_at_seconds = NEVER
        self.retired_clients: list[WorkerClient] = []
        self._connect = connect
        self._client: WorkerClient | None = None
        self._view: WorkerView | None = None
        self._worked_until_seconds = NEVER
        self._occupancy = Occupancy()
        self._told: dict[str, object] = {}

    # Who and where

    def told(self, source: str, statement: object) -> bool:
        """True when `source` says something new. Two sources that differ must not take turns."""
        if self._told.get(source) == statement:
            return False
        self._told[source] = statement
        return True

    def located(self, *, lane: str, revision: str, address: str) -> None:
        """A source names the worker's place."""
        if (lane, revision, address) == (self.lane, self.revision, self.address):
            return
        if address != self.address:
            self._retire_client()
            self.breaker, self.detail = Closed(), ""
        self.lane, self.revision, self.address = lane, revision, address
        self._view = None

    def identified(self, endpoint: worker_pb2.WorkerEndpoint) -> None:
        """The registry, or the worker itself, says who it is. A boot that was replaced is not listened to."""
        if endpoint.boot_id != self.latest.boot_id and not self.booted(endpoint.boot_id):
            return
        self.located(lane=endpoint.lane, revision=endpoint.revision, address=endpoint.address or self.address)
        if (self.pair_uid, self.engine) != (endpoint.pair_uid, endpoint.engine):
            self.pair_uid, self.engine, self.engine_version = (
                endpoint.pair_uid,
                endpoint.engine,
                endpoint.engine_version,
            )
            self._view = None

    def booted(self, boot_id: int) -> bool:
        """True when `boot_id` is a new start of this worker."""
        had = self.latest.boot_id
        if not self.latest.restarted(boot_id):
            return False
        if had:
            self._forget_boot()
        self._view = None
        return True

    def _forget_boot(self) -> None:
        self._retire_client()
        self.ledger.restarted()
        self.breaker, self.detail = Closed(), ""
        self.kv, self.max_model_tokens, self.vocabulary_size, self.described_boot = None, 0, 0, 0
        self._worked_until_seconds = NEVER
        self._occupancy = Occupancy()

    # What it says

    def offered(self, raw: bytes, now_seconds: float) -> Offer:
        if self._has_work():
            self._worked_until_seconds = now_seconds
        had = self.latest.boot_id
        offer = self.latest.offer(raw, now_seconds)
        if had and self.latest.boot_id != had:
            self._forget_boot()
        if offer in (Offer.FRESH, Offer.NEW_BOOT) and self.latest.signals is not None:
            self.ledger.acknowledge(self.latest.signals)
            self._occupancy.saw(self.latest.signals, now_seconds)
            self._view = None
        return offer

    def described(self, state: worker_pb2.GetStateResponse, now_seconds: float) -> Offer:
        """The worker's own answer. Raises WorkerLost when somebody else answers at its address."""
        endpoint = state.worker
        if endpoint.id and endpoint.id != self.id:
            raise WorkerLost(f"{self.address} answers as {endpoint.id}, not as {self.id}")
        address = self.address
        if endpoint.boot_id:
            self.identified(endpoint)
            # It may not know the name under which it is reached; where it answered is where it is.
            self.located(lane=self.lane, revision=self.revision, address=address)
        self.kv = KvGeometry(state.kv.block_tokens, state.kv.bytes_per_block) if state.kv.block_tokens else None
        self.max_model_tokens, self.vocabulary_size = state.max_model_tokens, state.vocabulary_size
        self.described_boot = endpoint.boot_id
        self._view = None
        return self.offered(state.signals, now_seconds) if state.signals else Offer.OLD

    def no_room_until(self, tokens: int, *, begun: bool, streamed_at: Callable[[], float], now_seconds: float) -> float:
        """Until when a request of `tokens` may have had to wait in its engine; see occupancy.py."""
        return self._occupancy.no_room_until(
            self.latest.signals, self.kv, tokens, begun=begun, streamed_at=streamed_at, now=now_seconds
        )

    # How it answers

    def happened(self, event: Event, detail: str, now_seconds: float, *, last_lane: bool) -> bool:
        """Tell the breaker. True when the worker's health changed."""
        before = breaker.health(self.breaker)
        self.breaker = breaker.after(self.breaker, event, now_seconds, last_lane=last_lane)
        if detail:
            self.detail = detail
        self._view = None
        return breaker.health(self.breaker) is not before

    def poll_due(self, now_seconds: float) -> bool:
        """Ask the worker itself: when suspect, when its boot is not described yet, when its signals are overdue."""
        if self.polling or not self.address:
            return False
        if isinstance(self.breaker, breaker.Suspect | breaker.Open):
            return breaker.probe_due(self.breaker, now_seconds)
        if now_seconds - self.polled_at_seconds < POLL_SECONDS:
            return False
        if not self.described_boot or self.described_boot != self.latest.boot_id:
            return True
        return now_seconds - self.latest.seen_at_seconds > DUE_SECONDS

    def gone(self, now_seconds: float) -> bool:
        """Nobody lists it and it is silent."""
        heard = max(self.listed_at_seconds, self.latest.seen_at_seconds)
        return not self.in_file and now_seconds - heard > GONE_SECONDS

    # Its connection

    def client(self) -> WorkerClient:
        if not self.address:
            raise WorkerLost(f"the address of {self.id} is not known yet")
        if self._client is None:
            self._client = self._connect(self.address)
        return self._client

    def _retire_client(self) -> None:
        if self._client is not None:
            self.retired_clients.append(self._client)
            self._client = None

    def disconnect(self) -> list[WorkerClient]:
        """Every client to close."""
        self._retire_client()
        retired, self.retired_clients = self.retired_clients, []
        return retired

    # Pictures

    def touched(self, now_seconds: float) -> None:
        """A booking changed."""
        self._worked_until_seconds = now_seconds
        self._view = None

    def _has_work(self) -> bool:
        signals = self.latest.signals
        shown = signals is not None and signals.running_requests + signals.waiting_requests > 0
        return shown or self.ledger.own_requests > 0

    def view(self) -> WorkerView:
        if self._view is None:
            self._view = WorkerView(
                id=self.id,
                role=self.role,
                lane=self.lane,
                revision=self.revision,
                address=self.address,
                pair_uid=self.pair_uid,
                boot_id=self.latest.boot_id,
                signals=self.latest.signals,
                seen_at_seconds=self.latest.seen_at_seconds,
                worked_until_seconds=math.inf if self._has_work() else self._worked_until_seconds,
                booked_requests=self.ledger.booked_requests,
                booked_tokens=self.ledger.booked_tokens,
                own_requests=self.ledger.own_requests,
                health=breaker.health(self.breaker),
                health_detail=self.detail,
                kv=self.kv,
                max_model_tokens=self.max_model_tokens,
                vocabulary_size=self.vocabulary_size,
            )
        return self._view

    def shown(self, age_ms: int) -> admin_pb2.WorkerView:
        """For GetFleet."""
        health = breaker.health(self.breaker)
        return admin_pb2.WorkerView(
            worker=worker_pb2.WorkerEndpoint(
                id=self.id,
                role=self.role.name.lower(),
                lane=self.lane,
                revision=self.revision,
                address=self.address,
                boot_id=self.latest.boot_id,
                pair_uid=self.pair_uid,
                engine=self.engine,
                engine_version=self.engine_version,
            ),
            signals=self.latest.raw,
            signal_age_ms=age_ms,
            booked_tokens=self.ledger.booked_tokens,
            booked_requests=self.ledger.booked_requests,
            health=health.value if health is Health.OK else f"{health.value}: {self.detail}",
        )
