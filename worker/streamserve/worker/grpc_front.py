"""WorkerService over the Engine seam: every request in bounded, watched, and out with an error of the contract's tree.

A prefill answers when its prompt is computed. Decode calls go over streams that many of them share (`decode_many.py`);
a `Decode` is the only call on one of its own. What both have in common is in `serving.py`. The caller's deadline bounds
all of it; a client that cancels, or reads nothing for SLOW_READER_SECONDS, ends the engine's request too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
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
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import worker_pb2, worker_pb2_grpc
from streamserve.worker import wire
from streamserve.worker.decode import StreamWatcher, decode
from streamserve.worker.decode_many import Deliver, ManyCalls, Write
from streamserve.worker.flights import engine_id
from streamserve.worker.pipeserve.engine import Job
from streamserve.worker.report_pacing import ReportPacing
from streamserve.worker.serving import Serving

SERVICE = "streamserve.v1.WorkerService"
T = TypeVar("T")
_log = logs.get(__name__)
_ABORT_SECONDS = 1.0


class WorkerFront(worker_pb2_grpc.WorkerServiceServicer):
    """The servicer. Answers NotReady until `attach`."""

    def __init__(self) -> None:
        self._attached: Serving | None = None
        self._pacing = ReportPacing()
        self._aborts = Tasks("aborts")
        self._streams: set[ManyCalls] = set()
        self._stopped = False

    def attach(self, serving: Serving) -> None:
        self._attached = serving

    async def stop(self) -> None:
        self._stopped = True
        for calls in self._streams:
            calls.stop()
        await self._aborts.stop()

    async def Prefill(self, request: worker_pb2.PrefillRequest, context: Any) -> worker_pb2.PrefillResponse:
        return await self._answer(context, lambda: self._prefill(request), "prefill")

    async def Decode(self, request: worker_pb2.DecodeRequest, context: Any) -> AsyncIterator[worker_pb2.DecodeResponse]:
        # The only call on a stream that could carry many; what it ends with is the status of this one.
        ended, error = False, b""

        async def write(message: worker_pb2.DecodeManyResponse) -> None:
            nonlocal ended, error
            for part in message.parts:
                if part.response:
                    await context.write(worker_pb2.DecodeResponse.FromString(part.response))
                ended, error = ended or part.ended, error or part.error

        await self._answer(context, lambda: self._decode_calls(_one_call(request), write), "decode")
        if error:
            await self._refuse(context, status.from_status(error))
        elif not ended:
            await self._refuse(context, _stopping())
        return
        yield  # makes this a generator, as the generated base class has it

    async def DecodeMany(
        self, request_iterator: AsyncIterator[worker_pb2.DecodeManyRequest], context: Any
    ) -> AsyncIterator[worker_pb2.DecodeManyResponse]:
        await self._answer(context, lambda: self._decode_calls(request_iterator, context.write), "decode")
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
            await self._refuse(context, error)
        raise asyncio.CancelledError

    async def _refuse(self, context: Any, error: StreamServeError) -> None:
        with contextlib.suppress(TimeoutError):
            # A stream whose reader is stuck cannot even take the status.
            async with asyncio.timeout(_ABORT_SECONDS):
                await status.abort(context, error)

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

    async def _prefill(self, request: worker_pb2.PrefillRequest) -> worker_pb2.PrefillResponse:
        serving = self._serving()
        if serving.identity.role != "prefill":
            raise NotReady("this is a decode worker; send Prefill to a prefill worker", reason="WRONG_ROLE")
        job = serving.job(request)
        if request.final:
            job = replace(job, sampling=replace(job.sampling, max_tokens=1, min_tokens=min(job.sampling.min_tokens, 1)))
        flight = serving.take_off(request)
        began = time.monotonic()
        try:
            if request.final:
                answer = await flight.finish(self._one_token(serving, job))
                serving.metrics.generated(len(answer.token_ids))
                return worker_pb2.PrefillResponse(answer=answer, load=serving.report(flight))
            done = await flight.finish(serving.engine.prefill(job))
            serving.flights.remember_prefill(flight)
            serving.metrics.prefilled(len(done.prompt_token_ids), time.monotonic() - began)
            return worker_pb2.PrefillResponse(
                prompt_token_ids={"ids_le32": tokens.pack(done.prompt_token_ids)},
                kv_handle=done.kv_handle,
                cached_prompt_tokens=done.cached_prompt_tokens,
                load=serving.report(flight),
            )
        except asyncio.CancelledError:
            # The client may have gone in the very moment in which the prompt became held.
            self._aborts.spawn(f"abort {flight.engine_id}", serving.engine.abort(flight.engine_id))
            raise
        finally:
            serving.land(flight)

    async def _one_token(self, serving: Serving, job: Job) -> worker_pb2.DecodeResponse:
        answer = worker_pb2.DecodeResponse()
        async with contextlib.aclosing(serving.engine.generate(job)) as source:  # type: ignore[type-var]
            async for chunk in source:
                answer.MergeFrom(wire.decode_response(chunk))
                if chunk.outcome is not None:
                    serving.finished(job, chunk.outcome)
                    return answer
        raise InternalError("the engine ended the stream without an outcome")

    # ---- decode ----

    async def _decode_calls(self, asks: AsyncIterator[worker_pb2.DecodeManyRequest], write: Write) -> None:
        serving = self._decoding()
        if self._stopped:
            raise _stopping()

        async def answer(request: worker_pb2.DecodeRequest, limit: float | None, deliver: Deliver) -> None:
            await self._within(limit, lambda: decode(serving, request, deliver), "decode")

        calls = ManyCalls(answer, StreamWatcher(serving, self._pacing), serving.slow_reader_seconds)
        self._streams.add(calls)
        try:
            await calls.serve(asks, write)
        finally:
            self._streams.discard(calls)

    def _decoding(self) -> Serving:
        serving = self._serving()
        if serving.identity.role != "decode":
            raise NotReady("this is a prefill worker; send Decode to a decode worker", reason="WRONG_ROLE")
        return serving

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
            worker=serving.endpoint,
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


def _stopping() -> WorkerLost:
    return WorkerLost("this worker stops; use another", reason="DRAINING")


async def _one_call(request: worker_pb2.DecodeRequest) -> AsyncIterator[worker_pb2.DecodeManyRequest]:
    yield worker_pb2.DecodeManyRequest(start=worker_pb2.DecodeCall(call=1, request=request))


def add_to(server: grpc.aio.Server, front: WorkerFront) -> None:
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(front, server)
