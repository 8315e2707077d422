"""The fleet as this router knows it (interface; the body follows)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

from streamserve.contract.errors import StreamServeError
from streamserve.contract.keys import Keyspace
from streamserve.router.flowguard.view import FleetView
from streamserve.router.worker_client import WorkerClient
from streamserve.runtime.tls import TlsFiles
from streamserve.v1 import admin_pb2, worker_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    keyspace: Keyspace
    pair_uid: str
    router_id: int
    redis_url: str | None = None
    fleet_file: Path | None = None
    tls: TlsFiles | None = None


class Booking:
    """`dispatch` goes into the request; `release` when the request has left the worker, as often as you like."""

    dispatch: worker_pb2.Dispatch
    worker_id: str

    def release(self) -> None: ...


class Fleet:
    def __init__(self, settings: FleetSettings, *, rng: Random) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def view(self) -> FleetView: ...

    def book(self, worker_id: str, *, tokens: int) -> Booking:
        """tokens: for a prefill worker the prompt tokens to compute, for a decode worker prompt + expected output."""

    def client(self, worker_id: str) -> WorkerClient:
        """Raises WorkerLost when the worker is gone."""

    def on_load_report(self, worker_id: str, signals: bytes) -> None: ...

    def on_result(self, worker_id: str, error: StreamServeError | None) -> None: ...

    def snapshot(self) -> admin_pb2.GetFleetResponse:
        """lanes and redis_connected filled; queued_requests and running_requests are the scheduler's to fill."""

    def ready_lanes(self) -> int: ...

    async def wait_change(self, timeout_seconds: float) -> bool:
        """True when something that a decision stands on changed, False after the timeout."""
