"""WorkerService over the Engine seam: every request in bounded, watched, and out with an error of the contract's tree.

One call's way: refused while draining -> checked (`wire.py`) -> a flight, so that a duplicate shows and others can end
it -> dispatch acknowledged -> the engine -> chunks through a merging buffer (`streams.py`) -> the stream, with a load
report every 50 ms for each router and with the last chunk. The caller's deadline bounds all of it; a client that
cancels, or reads nothing for SLOW_READER_SECONDS, ends the engine's request too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc

from streamserve.contract import tokens
from streamserve.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    NotReady,
    StreamServeError,
    WorkerLost,
)
from streamserve.runtime import logs, status
from streamserve.runtime.config_source import ConfigSource
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import worker_pb2, worker_pb2_grpc
from streamserve.worker import wire
from streamserve.worker.acks import Acks
from streamserve.worker.decode_many import Deliver, ManyCalls
from streamserve.worker.drain import Drain
from streamserve.worker.engine_time import EngineTime, Share
from streamserve.worker.flights import Flight, Flights, engine_id
from streamserve.worker.monitor.board import SignalBoard
from streamserve.worker.monitor.metrics import Metrics
from streamserve.worker.monitor.workloads import Workloads
from streamserve.worker.pipeserve.engine import Chunk, Engine, Job, Outcome
from streamserve.worker.reload import Reloader
from streamserve.worker.streams import SLOW_READER_SECONDS, ChunkBuffer, ReportPacing, too_slow
from streamserve.worker.wire import WorkerIdentity

SERVICE = "streamserve.v1.WorkerService"
T = TypeVar("T")
_log = logs.get(__name__)
_ABORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What the front stands on. Built once the engine is up."""

    engine: Engine
    identity: WorkerIdentity
    endpoint: dict[str, Any]
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


class WorkerFront(worker_pb2_grpc.WorkerServiceServicer):
    """The servicer. Answers NotReady until `attach`."""

    def __init__(self) -> None:
        self._attached: Serving | None = None
        self._pacing = ReportPacing()
        self._pumps = Tasks("streams")
        self._shared: set[ManyCalls] = set()
        self._stopped = False

    def attach(self, serving: Serving) -> None:
        self._attached = serving

    async def stop(self) -> None:
        self._stopped = True
        for shared in self._shared:
            shared.stop()
        await self._pumps.stop()

    async def Prefill(self, request: worker_pb2.PrefillRequest, context: Any) -> worker_pb2.PrefillResponse:
        return await self._answer(context, lambda: self._prefill(request, context), "prefill")

    async def Decode(self, request: worker_pb2.DecodeRequest, context: Any) -> AsyncIterator[worker_pb2.DecodeResponse]:
        # Written with context.write, so that a reader who does not read is noticed.
        await self._answer(context, lambda: self._decode(request, context), "decode")
        return
        yield  # makes this a generator, as the generated base class has it

    async def DecodeMany(
        self, request_iterator: AsyncIterator[worker_pb2.DecodeManyRequest], context: Any
    ) -> AsyncIterator[worker_pb2.DecodeManyResponse]:
        await self._answer(context, lambda: self._decode_many(request_iterator, context), "decode")
        return
        yield

    async def Abort(self, request: worker_pb2.AbortRequest, context: Any) -> worker_pb2.AbortResponse:
        return await self._answer(context, lambda: self._abort(request), "abort")

    async def GetState(self, request: worker_pb2.GetStateRequest, context: Any) -> worker_pb2.GetStateResponse:
        return await self._answer(context, self._state, "state")

    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainResponse:
        return await self._answer(context, lambda: self._drain(context), "drain")

    # ---- one call, whole ----

    async def _answer(self, context: Any, work: Callable[[], Awaitable[T]], call: str) -> T:
        """Run `work` within the caller's deadline; whatever goes wrong leaves as a status with details."""
        try:
            return await self._within(status.remaining_seconds(context), work, call)
        except StreamServeError as error:
            with contextlib.suppress(TimeoutError):
                # A stream whose reader is stuck cannot even take the status.
                async with asyncio.timeout(_ABORT_SECONDS):
                    await status.abort(context, error)
        raise asyncio.CancelledError

    async def _within(self, remaining: float | None, work: Callable[[], Awaitable[T]], call: str) -> T:
        """Whatever goes wrong is counted, and raised as an error of the contract's tree."""
        error: StreamServeError
        try:
            if remaining is not None and remaining <= 0:
                raise DeadlineExceeded("the deadline was already over; send one that lies ahead")
            async with asyncio.timeout(remaining) as timer:
                return await work()
        except StreamServeError as raised:
            error = raised
        except TimeoutError as raised:
            error = (
                DeadlineExceeded("the deadline passed while the worker was at it")
                if timer.expired()
                else InternalError(f"a wait inside the worker took too long: {raised}")
            )
        except Exception as raised:
            _log.exception("call %s failed", call)
            error = InternalError(f"the worker failed: {type(raised).__name__}")
        if self._attached is not None:
            self._attached.metrics.refused(call, error)
        raise error

    def _serving(self) -> Serving:
        if self._attached is None:
            raise NotReady("the engine is still loading; ask again when the health service says SERVING")
        return self._attached

    # ---- prefill ----

    async def _prefill(self, request: worker_pb2.PrefillRequest, context: Any) -> worker_pb2.PrefillResponse:
        serving = self._serving()
        if serving.identity.role != "prefill":
            raise NotReady("this is a decode worker; send Prefill to a prefill worker", reason="WRONG_ROLE")
        job = self._job(serving, request)
        if request.final:
            job = replace(job, sampling=replace(job.sampling, max_tokens=1, min_tokens=min(job.sampling.min_tokens, 1)))
        flight = self._take_off(serving, request)
        began = time.monotonic()
        try:
            if request.final:
                answer = await flight.finish(self._one_token(serving, job))
                return worker_pb2.PrefillResponse(answer=answer, load=self._report(serving, flight))
            done = await flight.finish(serving.engine.prefill(job))
            serving.flights.remember_prefill(flight)
            serving.metrics.prefilled(len(done.prompt_token_ids), time.monotonic() - began)
            return worker_pb2.PrefillResponse(
                prompt_token_ids={"ids_le32": tokens.pack(done.prompt_token_ids)},
                kv_handle=done.kv_handle,
                cached_prompt_tokens=done.cached_prompt_tokens,
                load=self._report(serving, flight),
            )
        except asyncio.CancelledError:
            # The client may have gone in the very moment in which the prompt became held.
            self._pumps.spawn(f"abort {flight.engine_id}", serving.engine.abort(flight.engine_id))
            raise
        finally:
            self._land(serving, flight)

    async def _one_token(self, serving: Serving, job: Job) -> worker_pb2.DecodeResponse:
        buffer = ChunkBuffer()
        await self._pump(serving.engine.generate(job), buffer)
        answer = wire.decode_response(chunk := await buffer.take())
        while chunk.outcome is None:
            chunk = await buffer.take()
            answer.MergeFrom(wire.decode_response(chunk))
        self._finished(serving, job, chunk.outcome)
        return answer

    # ---- decode ----

    def _decoding(self) -> Serving:
        serving = self._serving()
        if serving.identity.role != "decode":
            raise NotReady("this is a prefill worker; send Decode to a decode worker", reason="WRONG_ROLE")
        return serving

    async def _decode_many(self, asks: AsyncIterator[worker_pb2.DecodeManyRequest], context: Any) -> None:
        serving = self._decoding()
        if self._stopped:
            raise WorkerLost("this worker stops; use another", reason="DRAINING")

        async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
            await self._within(limit, lambda: self._decode_to(deliver, request), "decode")

        shared = ManyCalls(answer, _Watcher(serving, self._pacing), serving.slow_reader_seconds)
        self._shared.add(shared)
        try:
            await shared.serve(asks, context.write)
        finally:
            self._shared.discard(shared)

    async def _decode_to(self, deliver: Deliver, request: worker_pb2.DecodeRequest) -> None:
        """One of many: its chunks go out with those of others, so the engine is read right into `deliver`."""
        serving = self._decoding()
        job = self._job(serving, request)
        flight = self._take_off(serving, request)
        share = serving.engine_time.enter(job.workload)
        try:
            feed = self._feed(serving, request, job, flight, share, deliver)
            outcome = await flight.finish(feed, wait_seconds=_ABORT_SECONDS)
            self._finished(serving, job, outcome)
        finally:
            share.close()
            self._land(serving, flight)

    async def _feed(
        self,
        serving: Serving,
        request: worker_pb2.DecodeRequest,
        job: Job,
        flight: Flight,
        share: Share,
        deliver: Deliver,
    ) -> Outcome:
        """Engine to stream, to the end. Ending it, by whatever way, closes the iterator, which aborts the request."""
        chunks = serving.engine.generate(
            job, kv_handle=request.kv_handle, cached_prompt_tokens=request.cached_prompt_tokens
        )
        outcome: Outcome | None = None
        began, first = time.monotonic(), True

        def report() -> worker_pb2.LoadReport:
            load = self._report(serving, flight)
            load.engine_seconds = share.told()
            return load

        async with contextlib.aclosing(chunks) as source:  # type: ignore[type-var]
            async for chunk in source:
                if first:
                    serving.metrics.first_chunk(time.monotonic() - began)
                    first = False
                outcome = chunk.outcome
                if outcome is None:
                    await deliver(chunk, None)
                else:
                    share.end()
                    await deliver(chunk, report)
        if outcome is not None:
            return outcome
        raise InternalError("the engine ended the stream without an outcome")

    async def _decode(self, request: worker_pb2.DecodeRequest, context: Any) -> None:
        serving = self._decoding()
        job = self._job(serving, request)
        flight = self._take_off(serving, request)
        buffer = ChunkBuffer()
        flight.doom.add_done_callback(lambda doom: None if doom.cancelled() else buffer.fail(doom.result()))
        chunks = serving.engine.generate(
            job, kv_handle=request.kv_handle, cached_prompt_tokens=request.cached_prompt_tokens
        )
        share = serving.engine_time.enter(job.workload)
        pump = self._pumps.spawn(flight.engine_id, self._pump(chunks, buffer, share.end))
        began = time.monotonic()
        try:
            first = True
            while True:
                chunk = await buffer.take()
                if first:
                    serving.metrics.first_chunk(time.monotonic() - began)
                    first = False
                await self._send(serving, context, request, flight, share, chunk)
                if chunk.outcome is not None:
                    self._finished(serving, job, chunk.outcome)
                    return
        finally:
            pump.cancel()
            # The id is free again only when the engine has let go of it.
            await asyncio.wait((pump,), timeout=_ABORT_SECONDS)
            share.close()
            self._land(serving, flight)
            serving.metrics.merged(buffer.merged)

    async def _send(
        self,
        serving: Serving,
        context: Any,
        request: worker_pb2.DecodeRequest,
        flight: Flight,
        share: Share,
        chunk: Chunk,
    ) -> None:
        message = wire.decode_response(chunk)
        if chunk.outcome is not None:
            message.load.CopyFrom(self._report(serving, flight))
            message.load.engine_seconds = share.told()
        elif self._pacing.due(request.dispatch.router_id, time.monotonic()):
            message.load.signals = serving.board.fresh()
        try:
            async with asyncio.timeout(serving.slow_reader_seconds) as timer:
                await context.write(message)
        except TimeoutError:
            if not timer.expired():
                raise
            raise too_slow(serving.slow_reader_seconds) from None
        serving.metrics.sent(len(chunk.token_ids))

    async def _pump(
        self, chunks: AsyncIterator[Chunk], buffer: ChunkBuffer, ended: Callable[[], None] = lambda: None
    ) -> None:
        """Engine to buffer. Ending it, by whatever way, closes the iterator, which aborts the engine's request.
        `ended`: called when the engine has done its part, however long the client takes to read it."""
        try:
            async with contextlib.aclosing(chunks) as source:  # type: ignore[type-var]
                async for chunk in source:
                    if chunk.outcome is not None:
                        ended()
                    await buffer.put(chunk)
            buffer.fail(InternalError("the engine ended the stream without an outcome"))
        except StreamServeError as error:
            buffer.fail(error)
        except Exception as error:
            _log.exception("the engine failed")
            buffer.fail(InternalError(f"the engine failed: {type(error).__name__}: {error}"))

    # ---- shared by both ----

    def _job(self, serving: Serving, request: worker_pb2.PrefillRequest | worker_pb2.DecodeRequest) -> Job:
        serving.drain.refuse_if_draining()
        request_id = wire.request_id(request)
        logs.request_id.set(request_id)
        return Job(
            request_id=engine_id(request_id, request.attempt),
            prompt=wire.prompt(request.prompt),
            sampling=wire.sampling(request.sampling),
            workload=wire.workload(request.workload),
            priority=request.priority,
        )

    def _take_off(self, serving: Serving, request: worker_pb2.PrefillRequest | worker_pb2.DecodeRequest) -> Flight:
        flight = serving.flights.open(request.request_id, request.attempt)
        if request.HasField("dispatch"):
            serving.acks.admit(request.dispatch.router_id, request.dispatch.sequence)
        serving.board.touch()
        return flight

    def _land(self, serving: Serving, flight: Flight) -> None:
        serving.flights.close(flight)
        serving.board.touch()

    def _report(self, serving: Serving, flight: Flight) -> worker_pb2.LoadReport:
        """The load without this request, whose last message carries it."""
        serving.flights.close(flight)
        return worker_pb2.LoadReport(signals=serving.board.fresh())

    def _finished(self, serving: Serving, job: Job, outcome: Outcome) -> None:
        serving.workloads.observe(job.workload, outcome)
        serving.metrics.finished(outcome)

    # ---- control ----

    async def _abort(self, request: worker_pb2.AbortRequest) -> worker_pb2.AbortResponse:
        serving = self._serving()
        found = False
        for flight in serving.flights.attempts(request.request_id, request.attempt):
            flight.fail(Cancelled("the request was aborted", reason="ABORTED"))
            await serving.engine.abort(flight.engine_id)
            found = True
        for attempt in serving.flights.forget_prefills(request.request_id, request.attempt):
            await serving.engine.abort(engine_id(request.request_id, attempt))
            found = True
        serving.board.touch()
        return worker_pb2.AbortResponse(found=found)

    async def _state(self) -> worker_pb2.GetStateResponse:
        serving = self._serving()
        engine, info = serving.engine.snapshot(), serving.engine.info
        return worker_pb2.GetStateResponse(
            worker=worker_pb2.WorkerEndpoint(**serving.endpoint),
            signals=serving.board.fresh(),
            config_generation=serving.reloader.applied.generation,
            config_step=serving.reloader.applied.step,
            config_error=serving.config.last_error,
            kv=wire.kv_geometry(info),
            vocabulary_size=info.vocabulary_size,
            max_model_tokens=info.max_model_tokens,
            max_running_requests=info.max_running_requests,
            depth_histogram=engine.depth_histogram,
            kv_bytes_received=engine.kv_bytes_received,
            kv_transfers_received=engine.kv_transfers_received,
            kv_transfers_failed=engine.kv_transfers_failed,
            kv_bytes_expected=engine.kv_bytes_expected,
            running_requests=engine.running_requests,
            kv_blocks_used=engine.kv_blocks_used,
        )

    async def _drain(self, context: Any) -> worker_pb2.DrainResponse:
        remaining = status.remaining_seconds(context)
        # Answer before the caller gives up, so that it learns how many are left.
        limit = 600.0 if remaining is None else max(remaining - min(0.2, remaining / 4), 0.0)
        return worker_pb2.DrainResponse(unfinished_requests=await self._serving().drain.wait(limit))


class _Watcher:
    """The worker's eyes on a stream that many calls share."""

    def __init__(self, serving: Serving, pacing: ReportPacing) -> None:
        self._serving = serving
        self._pacing = pacing
        self.sent = serving.metrics.sent
        self.merged = serving.metrics.merged

    def signals_due(self, router_id: int) -> bytes | None:
        return self._serving.board.fresh() if self._pacing.due(router_id, time.monotonic()) else None


def add_to(server: grpc.aio.Server, front: WorkerFront) -> None:
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(front, server)
