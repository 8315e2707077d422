"""The fleet as this router knows it: gathers from every source, hands out frozen views, keeps the books.

    which workers exist    Redis registry (1 s) and the fleet file; either suffices
    what they do           Redis (50 to 100 ms), load reports in band, GetState for those that are silent (300 ms)
    whether they answer    results of this router's own requests, and GetState as the probe
    which lanes serve      lanes.step on facts of all these; canaries run for pairs that are due

With Redis dead nothing here fails: signals come from the workers themselves, the file says who exists.
Everything runs on one event loop; methods that are not `async` never wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from streamserve.contract import goodput, lane_word
from streamserve.contract.errors import InternalError, StreamServeError, TransferFailed, WorkerLost
from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.keys import GOODPUT_TTL_SECONDS, LANES_TTL_MS, Keyspace
from streamserve.contract.lane_word import LaneReport, LaneWord
from streamserve.router.flowguard.explain import age_ms
from streamserve.router.flowguard.view import NEVER, FleetView, LaneState
from streamserve.router.lanes import have_judged
from streamserve.router.signals import breaker, fleet_file
from streamserve.router.signals.bookings import Booking
from streamserve.router.signals.breaker import Event
from streamserve.router.signals.fleet_file import FleetFileError, ListedWorker
from streamserve.router.signals.gates import Gates
from streamserve.router.signals.reader import MAX_WORKERS, SignalReader
from streamserve.router.signals.store import Offer
from streamserve.router.signals.worker import TrackedWorker, role_of
from streamserve.router.worker_client import WorkerClient
from streamserve.runtime import logs
from streamserve.runtime.tasks import Tasks
from streamserve.runtime.tls import TlsFiles
from streamserve.v1 import admin_pb2, worker_pb2

TEND_SECONDS: Final = 0.1
FILE_SECONDS: Final = 0.5
PUBLISH_SECONDS: Final = 1.0
MAX_WORDS: Final = 500
POLL_TIMEOUT_SECONDS: Final = 2.0
PLACING_SECONDS: Final = 0.3
_log = logs.get(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """`router_id` is random per process start: workers echo it in their acknowledgements."""

    keyspace: Keyspace
    pair_uid: str
    router_id: int
    redis_url: str | None = None
    fleet_file: Path | None = None
    tls: TlsFiles | None = None


class Fleet:
    """Start it, ask it for views, tell it what happened, stop it."""

    def __init__(self, settings: FleetSettings, *, rng: Random, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._workers: dict[str, TrackedWorker] = {}
        self._numbers = count(1)
        self._tasks = Tasks("fleet")
        self._kick = asyncio.Event()
        self._changed = asyncio.Event()
        self._view: FleetView | None = None
        self._file_stamp: tuple[int, int, int] | None = None
        self._published_at = -PUBLISH_SECONDS
        self._published: bytes = b""
        self._heard_since: float | None = None
        self._asked_at = -PLACING_SECONDS
        self._settled = False
        self.file_error = ""
        self._gates = Gates(
            self._tasks,
            pair_uid=settings.pair_uid,
            client=self.client,
            book=self.book,
            changed=self._change,
            clock=clock,
            rng=rng,
        )
        self._reader: SignalReader | None = None
        if settings.redis_url is not None:
            self._reader = SignalReader(
                settings.keyspace,
                settings.redis_url,
                worker_ids=lambda: list(self._workers),
                on_signals=self.on_load_report,
                on_registry=self._on_registry,
                clock=clock,
                rng=rng,
                quiet=lambda: clock() - self._asked_at > PLACING_SECONDS,
            )

    @property
    def failed(self) -> asyncio.Event:
        """Set when a task of the fleet has died, which is a defect: the process should end."""
        return self._tasks.failed

    @property
    def redis_connected(self) -> bool:
        return self._reader is not None and self._reader.connected

    @property
    def quarantined(self) -> int:
        """Values that could not be used, from Redis or in band."""
        refused = 0 if self._reader is None else self._reader.quarantined
        return refused + sum(worker.latest.quarantined for worker in self._workers.values())

    async def start(self) -> None:
        """Read the file, then keep everything current in the background."""
        self._read_file()
        if self._reader is not None:
            self._tasks.spawn("redis", self._reader.run())
        if self._settings.fleet_file is not None:
            self._tasks.spawn("file", self._watch_file())
        self._tasks.spawn("tend", self._tend())

    async def stop(self) -> None:
        await self._tasks.stop()
        clients = [client for worker in self._workers.values() for client in worker.disconnect()]
        await asyncio.gather(*(client.close() for client in clients))
        self._change()

    # What the scheduler asks

    def view(self) -> FleetView:
        """The fleet now. Cheap when nothing changed since the last call."""
        now = self._clock()
        known = self._view
        lanes = self._gates.view(self._workers, now) if known is None else known.lanes
        self._view = FleetView(
            now_seconds=now,
            pair_uid=self._settings.pair_uid,
            lanes=lanes,
            redis_connected=self.redis_connected,
        )
        return self._view

    def ready_lanes(self) -> int:
        return sum(lane.state is LaneState.READY for lane in self.view().lanes)

    def book(self, worker_id: str, *, tokens: int) -> Booking:
        """Reserve before dispatching. `tokens`: for a prefill worker the prompt tokens to compute, for a decode
        worker the KV that the request will need (prompt + expected output); what is over the model's length, as an
        estimate may be, will never be there. Raises WorkerLost."""
        worker = self._worker(worker_id)
        tokens = min(tokens, worker.max_model_tokens or tokens)

        def changed() -> None:
            worker.touched(self._clock())
            self._change()

        booking = Booking(worker_id, worker.ledger, self._settings.router_id, tokens, changed)
        self._asked_at = self._clock()
        worker.touched(self._asked_at)
        self._view = None
        return booking

    def client(self, worker_id: str) -> WorkerClient:
        """The connection to the worker's current start. Raises WorkerLost when it is gone."""
        return self._worker(worker_id).client()

    def no_room_until(self, worker_id: str, tokens: int, *, begun: bool, streamed_at: Callable[[], float]) -> float:
        """The last moment at which this worker's engine worked and had no room for a request of `tokens`, as far as is
        known; see occupancy.py."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return NEVER
        return worker.no_room_until(tokens, begun=begun, streamed_at=streamed_at, now_seconds=self._clock())

    async def wait_change(self, timeout_seconds: float) -> bool:
        """True when something that a decision stands on changed, False after the timeout."""
        self._asked_at = self._clock()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def snapshot(self) -> admin_pb2.GetFleetResponse:
        """For GetFleet; queued and running requests are the scheduler's to fill in."""
        view = self.view()
        return admin_pb2.GetFleetResponse(
            redis_connected=view.redis_connected,
            lanes=[
                admin_pb2.Lane(
                    name=lane.name,
                    revision=lane.revision,
                    state=f"LANE_STATE_{lane.state.value}",
                    reason=lane.reason,
                    workers=[
                        self._workers[worker.id].shown(age_ms(view.age_seconds(worker))) for worker in lane.workers
                    ],
                )
                for lane in view.lanes
            ],
        )

    def _worker(self, worker_id: str) -> TrackedWorker:
        worker = self._workers.get(worker_id)
        if worker is None:
            raise WorkerLost(f"worker {worker_id} is gone; send the request again")
        return worker

    # What happened

    def on_load_report(self, worker_id: str, signals: bytes) -> None:
        """Signals of a worker, whichever way they came. Garbage is counted, never raised."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        flags = worker.latest.signals.flags if worker.latest.signals else None
        self._offered(worker, worker.offered(signals, self._clock()), flags)

    def _offered(self, worker: TrackedWorker, offer: Offer, flags_before: int | None) -> None:
        if offer is Offer.GARBAGE and worker.latest.quarantined == 1:
            _log.warning("signals of %s are refused: %s", worker.id, worker.latest.last_garbage)
        if offer not in (Offer.FRESH, Offer.NEW_BOOT):
            return
        flags = worker.latest.signals.flags if worker.latest.signals else None
        if offer is Offer.NEW_BOOT or flags != flags_before:
            self._gates.stale = True
        self._change()

    def record(self, minute: GoodputMinute) -> None:
        """Publish what ended in a minute, for whoever judges a canary."""
        if self._reader is not None:
            key = self._settings.keyspace.router_goodput(f"{self._settings.router_id:08x}")
            self._reader.append(key, goodput.encode(minute), keep=goodput.MINUTES, ttl_seconds=GOODPUT_TTL_SECONDS)

    def on_result(self, worker_id: str, error: StreamServeError | None) -> None:
        """How a request ended on a worker, as far as the worker is to blame or to praise."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        if error is None:
            self._happened(worker, Event.SUCCEEDED, "")
        elif isinstance(error, WorkerLost):
            self._happened(worker, Event.LOST, error.message)
        elif isinstance(error, TransferFailed | InternalError):
            self._happened(worker, Event.FAILED, error.message)

    def _happened(self, worker: TrackedWorker, event: Event, detail: str) -> None:
        if event in (Event.SUCCEEDED, Event.PROBE_ANSWERED) and worker.breaker == breaker.Closed():
            return
        others = any(lane.state is LaneState.READY and lane.name != worker.lane for lane in self.view().lanes)
        if worker.happened(event, detail, self._clock(), last_lane=not others):
            level = _log.info if event in (Event.SUCCEEDED, Event.PROBE_ANSWERED) else _log.warning
            level("worker %s is now %s: %s", worker.id, breaker.health(worker.breaker), detail or "it answers")
            self._gates.stale = True
            self._kick.set()
            self._change()

    def _change(self) -> None:
        self._view = None
        self._changed.set()
        self._changed = asyncio.Event()

    # Who exists

    def _on_registry(self, endpoints: list[worker_pb2.WorkerEndpoint]) -> None:
        now = self._clock()
        for endpoint in endpoints:
            worker = self._tracked(endpoint.id, endpoint.role)
            if worker is None:
                continue
            worker.listed_at_seconds = now
            said = (endpoint.boot_id, endpoint.address, endpoint.lane, endpoint.revision)
            if worker.told("registry", said):
                worker.identified(endpoint)
                self._gates.stale = True
                self._kick.set()
                self._change()

    def _tracked(self, worker_id: str, role_name: str) -> TrackedWorker | None:
        role = role_of(role_name)
        if role is None:
            return None
        worker = self._workers.get(worker_id)
        if worker is not None:
            return worker if worker.role is role else None
        if len(self._workers) >= MAX_WORKERS:
            return None
        worker = TrackedWorker(
            worker_id,
            role,
            router_id=self._settings.router_id,
            numbers=self._numbers,
            connect=lambda address: WorkerClient(address, tls=self._settings.tls),
        )
        self._workers[worker_id] = worker
        return worker

    async def _watch_file(self) -> None:
        while True:
            await asyncio.sleep(FILE_SECONDS)
            self._read_file()

    def _read_file(self) -> None:
        path = self._settings.fleet_file
        if path is None:
            return
        stamp = fleet_file.stamp(path)
        if stamp == self._file_stamp:
            return
        self._file_stamp = stamp
        try:
            listed = fleet_file.read(path)
        except FleetFileError as error:
            self.file_error = str(error)
            _log.warning("the fleet file is not used, the last one stays in force: %s", error)
            return
        self.file_error = ""
        self._on_file(listed)

    def _on_file(self, listed: tuple[ListedWorker, ...]) -> None:
        named = {entry.id for entry in listed}
        for worker in self._workers.values():
            worker.in_file = worker.id in named
        for entry in listed:
            worker_or_none = self._tracked(entry.id, entry.role)
            if worker_or_none is None:
                continue
            worker_or_none.in_file = True
            if worker_or_none.told("file", entry):
                worker_or_none.located(lane=entry.lane, revision=entry.revision, address=entry.address)
        self._gates.stale = True
        self._kick.set()
        self._change()

    # What is done about it

    async def _tend(self) -> None:
        while True:
            now = self._clock()
            for worker in list(self._workers.values()):
                if worker.gone(now):
                    self._remove(worker)
                elif worker.poll_due(now):
                    worker.polling = True
                    worker.breaker = breaker.probing(worker.breaker)
                    self._tasks.spawn(f"poll-{worker.id}", self._poll(worker))
                for client in worker.retired_clients:
                    self._tasks.spawn("close", client.close())
                worker.retired_clients = []
            self._gates.tend(self._workers, now)
            self._view = None
            self._publish(now)
            self._kick.clear()
            try:
                async with asyncio.timeout(TEND_SECONDS):
                    await self._kick.wait()
            except TimeoutError:
                pass

    def _remove(self, worker: TrackedWorker) -> None:
        if self._reader is not None and not self._reader.connected and worker.listed_at_seconds > 0:
            return  # the registry cannot speak for it now; silence is no proof
        _log.info("worker %s is gone: nothing lists it and it is silent", worker.id)
        del self._workers[worker.id]
        for client in worker.disconnect():
            self._tasks.spawn("close", client.close())
        self._gates.stale = True
        self._change()

    async def _poll(self, worker: TrackedWorker) -> None:
        """Ask the worker for its state: signals when Redis has none, and the breaker's probe."""
        try:
            state = await worker.client().get_state(timeout_seconds=POLL_TIMEOUT_SECONDS)
            flags = worker.latest.signals.flags if worker.latest.signals else None
            offer = worker.described(state, self._clock())
        except StreamServeError as error:
            # A worker that has never answered may still be starting: nothing can be lost on it.
            probing = isinstance(worker.breaker, breaker.Suspect | breaker.HalfOpen)
            if worker.described_boot or probing:
                self._happened(worker, Event.PROBE_FAILED if probing else Event.LOST, error.message)
        else:
            self._offered(worker, offer, flags)
            self._happened(worker, Event.PROBE_ANSWERED, "")
            self._change()
        finally:
            worker.polling = False
            worker.polled_at_seconds = self._clock()

    def _publish(self, now: float) -> None:
        """Each lane's state for the operator: each second, and at once when one changed."""
        if self._reader is None:
            return
        value = lane_word.encode(self._word(now))
        if value == self._published and now - self._published_at < PUBLISH_SECONDS:
            return
        self._published, self._published_at = value, now
        key = self._settings.keyspace.router_lanes(f"{self._settings.router_id:08x}")
        self._reader.publish(key, value, LANES_TTL_MS)

    def _word(self, now: float) -> LaneWord:
        lanes = self.view().lanes
        if self._heard_since is None and self.redis_connected:
            self._heard_since = now
        if not self._settled and self._heard_since is not None:
            self._settled = have_judged(lanes, now - self._heard_since)
        return LaneWord(
            settled=self._settled,
            lanes={
                _plain(lane.name): LaneReport(
                    state=lane.state.value, reason=_plain(lane.reason), revision=_plain(lane.revision)
                )
                for lane in lanes
            },
        )


def _plain(text: str) -> str:
    """Names and words come from workers: whatever they are, the word can be written and read."""
    return text[:MAX_WORDS].encode(errors="replace").decode()
