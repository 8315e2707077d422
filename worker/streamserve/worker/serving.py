"""What a worker serves with, and what prefill and decode calls have in common.

One call's way: refused while draining -> checked (`wire.py`) -> a flight, so that a duplicate shows and others can end
it -> dispatch acknowledged -> the engine -> its outcome counted -> landed.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamserve.contract.request_id import of_client
from streamserve.runtime import logs
from streamserve.runtime.config_source import ConfigSource
from streamserve.v1 import worker_pb2
from streamserve.worker import wire
from streamserve.worker.acks import Acks
from streamserve.worker.decode_many import SLOW_READER_SECONDS
from streamserve.worker.drain import Drain
from streamserve.worker.engine_time import EngineTime
from streamserve.worker.flights import Flight, Flights, engine_id
from streamserve.worker.monitor.board import SignalBoard
from streamserve.worker.monitor.metrics import Metrics
from streamserve.worker.monitor.workloads import Workloads
from streamserve.worker.pipeserve.engine import Engine, Job, Outcome
from streamserve.worker.reload import Reloader
from streamserve.worker.wire import WorkerIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Built once the engine is up."""

    engine: Engine
    identity: WorkerIdentity
    endpoint: worker_pb2.WorkerEndpoint
    flights: Flights
    acks: Acks
    drain: Drain
    board: SignalBoard
    engine_time: EngineTime
    workloads: Workloads
    metrics: Metrics
    reloader: Reloader
    config: ConfigSource
    slow_reader_seconds: float = SLOW_READER_SECONDS

    def job(self, request: worker_pb2.PrefillRequest | worker_pb2.DecodeRequest) -> Job:
        """Raises Draining, or InvalidRequest that names the field."""
        self.drain.refuse_if_draining()
        request_id = wire.request_id(request)
        logs.request_id.set(of_client(request_id))
        return Job(
            request_id=engine_id(request_id, request.attempt),
            prompt=wire.prompt(request.prompt),
            sampling=wire.sampling(request.sampling),
            workload=wire.workload(request.workload),
            priority=request.priority,
        )

    def take_off(self, request: worker_pb2.PrefillRequest | worker_pb2.DecodeRequest) -> Flight:
        """Raises DuplicateRequest. Whoever takes off lands."""
        flight = self.flights.open(request.request_id, request.attempt)
        if request.HasField("dispatch"):
            self.acks.admit(request.dispatch.router_id, request.dispatch.sequence)
        self.board.touch()
        return flight

    def leave_engine(self, flight: Flight) -> None:
        """The engine has let go of it; what is left is its reader's affair."""
        self.flights.leave_engine(flight)
        self.board.touch()

    def land(self, flight: Flight) -> None:
        self.flights.close(flight)
        self.board.touch()

    def report(self, flight: Flight) -> worker_pb2.LoadReport:
        """The load without this request, whose last message carries it."""
        self.flights.close(flight)
        return worker_pb2.LoadReport(signals=self.board.fresh())

    def finished(self, job: Job, outcome: Outcome) -> None:
        self.workloads.observe(job.workload, outcome)
        self.metrics.finished(outcome)
