"""A decode call on this worker: from its request to the engine, and chunk by chunk to whoever delivers them."""

from __future__ import annotations

import contextlib
import time
from typing import Final

from streamserve.contract.errors import InternalError
from streamserve.v1 import worker_pb2
from streamserve.worker.decode_many import Deliver
from streamserve.worker.engine_time import Share
from streamserve.worker.flights import Flight
from streamserve.worker.pipeserve.engine import Job, Outcome
from streamserve.worker.report_pacing import ReportPacing
from streamserve.worker.serving import Serving

_ABORT_SECONDS: Final = 1.0


async def decode(serving: Serving, request: worker_pb2.DecodeRequest, deliver: Deliver) -> None:
    """Returns once the last chunk was delivered. Raises StreamServeError; being cancelled ends the engine's request."""
    job = serving.job(request)
    flight = serving.take_off(request)
    share = serving.engine_time.enter(job.workload)
    try:
        feed = _feed(serving, request, job, flight, share, deliver)
        # The id is free again only when the engine has let go of it.
        outcome = await flight.finish(feed, wait_seconds=_ABORT_SECONDS)
        serving.finished(job, outcome)
    finally:
        share.close()
        serving.land(flight)


async def _feed(
    serving: Serving, request: worker_pb2.DecodeRequest, job: Job, flight: Flight, share: Share, deliver: Deliver
) -> Outcome:
    """Engine to stream, to the end. Ending it, by whatever way, closes the iterator, which aborts the request."""
    chunks = serving.engine.generate(
        job, kv_handle=request.kv_handle, cached_prompt_tokens=request.cached_prompt_tokens
    )
    outcome: Outcome | None = None
    began, first = time.monotonic(), True

    def report() -> worker_pb2.LoadReport:
        load = serving.report(flight)
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
                serving.leave_engine(flight)
                await deliver(chunk, report)
    if outcome is not None:
        return outcome
    raise InternalError("the engine ended the stream without an outcome")


class StreamWatcher:
    """The worker's eyes on a stream of decode calls."""

    def __init__(self, serving: Serving, pacing: ReportPacing) -> None:
        self._serving = serving
        self._pacing = pacing
        self.sent = serving.metrics.sent
        self.merged = serving.metrics.merged

    def signals_due(self, router_id: int) -> bytes | None:
        return self._serving.board.fresh() if self._pacing.due(router_id, time.monotonic()) else None
