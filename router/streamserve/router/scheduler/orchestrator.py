"""Drives a session: does what it says, tells it what happened, and waits for nothing without a limit.

    admission and pick   until the deadline or the queue's own limit (dispatch.py)
    prefill              max(stall_seconds, STALL_FACTOR x predicted time)
    first chunk          the same, with the predicted transfer and decode wait
    each further chunk   max(stall_seconds, STALL_FACTOR x predicted time per token)
    the client           slow_consumer_seconds for one chunk

What waits for a worker waits from when its engine last worked and had no room for this request (signals/occupancy.py).

Chunks are forwarded as bytes: a DecodeResponse behind an `attempt` field is a GenerateResponse (same field numbers,
and protobuf messages merge by concatenation). Only the first chunk gets more (the route), and only a chunk with a
load report is written anew, without it.

Whatever ends the request, its bookings are given back before `serve` returns or raises, and the aborts for its workers
are on their way; each takes at most ABORT_SECONDS, and `stop` waits for them.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

from streamserve.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    DuplicateRequest,
    InternalError,
    SlowConsumer,
    StreamServeError,
    WorkerLost,
)
from streamserve.contract.request_id import for_workers
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.router.goodput import Ended, GoodputMeter
from streamserve.router.metrics import RouterMetrics
from streamserve.router.scheduler import session as core
from streamserve.router.scheduler.dispatch import Dispatcher, Placement
from streamserve.router.scheduler.request import GenerationRequest
from streamserve.router.scheduler.watchdog import Cause, Expired, Watchdog
from streamserve.router.signals.fleet import Fleet
from streamserve.router.worker_client import DecodeChunk
from streamserve.runtime import logs
from streamserve.runtime.backoff import RetryBudget
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import common_pb2, inference_pb2, worker_pb2

STALL_FACTOR: Final = 8.0
ABORT_SECONDS: Final = 2.0
# The worker gives up a little before the client does, so that the client is told why.
DEADLINE_MARGIN_SECONDS: Final = 0.005
_END_SECONDS: Final = 1.0

Write = Callable[[bytes], Awaitable[None]]
"""Sends a chunk to the client. Raises ClientLeft where there is none any more."""
_log = logs.get(__name__)


class ClientLeft(Cancelled):
    """The client's call ended under a write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    stall_seconds: float = 20.0
    slow_consumer_seconds: float = 30.0


class Orchestrator:
    """Every request of one router that is not yet answered."""

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        *,
        config: Callable[[], RuntimeConfig],
        clock: Callable[[], float],
        metrics: RouterMetrics,
        goodput: GoodputMeter,
        router_id: int,
        limits: Limits | None = None,
        budget: RetryBudget | None = None,
    ) -> None:
        self.fleet = fleet
        self.dispatcher = dispatcher
        self.config = config
        self.clock = clock
        self.metrics = metrics
        self.goodput = goodput
        self.router_id = router_id
        self.limits = limits or Limits()
        self.budget = budget or RetryBudget()
        self.idle = asyncio.Event()
        self.idle.set()
        self._aborts = Tasks("aborts")
        self._running: dict[str, _Run] = {}
        self._numbers = count(1)

    @property
    def running(self) -> int:
        """Requests in this router, queued ones included."""
        return len(self._running)

    async def serve(self, request: GenerationRequest, write: Write) -> None:
        """Send the whole answer through `write` (GenerateResponse bytes). Raises what the client has to be told."""
        if request.id in self._running:
            self.metrics.refused(DuplicateRequest.default_reason)
            raise DuplicateRequest(
                f"request {request.id} is still running here; choose another x-request-id or wait for its end"
            )
        run = _Run(self, request, write, for_workers(request.id, self.router_id, next(self._numbers)))
        self._running[request.id] = run
        self.idle.clear()
        token = logs.request_id.set(request.id)
        outcome = "OK"
        try:
            await run.drive()
        except StreamServeError as error:
            outcome = error.reason
            level = "warning" if isinstance(error, InternalError | WorkerLost) else "info"
            getattr(_log, level)("request failed: %s", error.message, extra={"reason": error.reason})
            raise
        except asyncio.CancelledError:
            # A client may leave as soon as it has the whole answer.
            outcome = "OK" if run.delivered else "CANCELLED"
            raise
        finally:
            run.close()
            del self._running[request.id]
            if not self._running:
                self.idle.set()
            timing = run.timing()
            self.metrics.finished(outcome, request.workload, timing)
            if outcome == "OK" and (ended := run.ended(timing)) is not None:
                self.goodput.ended(ended)
            logs.request_id.reset(token)

    async def stop(self) -> None:
        """Let the aborts that are on their way go out: workers must not go on with what nobody waits for."""
        await self._aborts.join(ABORT_SECONDS)
        await self._aborts.stop()

    def streamed_at(self, worker: str) -> float:
        """When an answer from this worker went on last; -inf where none of those that run has begun."""
        return max((run.streamed_at for run in self._running.values() if run.waits_for == worker), default=-math.inf)

    def abort_workers(self, request_id: str, attempt: int, workers: tuple[str, ...]) -> None:
        for worker in workers:
            self._aborts.spawn(worker, self._abort(request_id, attempt, worker))

    async def _abort(self, request_id: str, attempt: int, worker: str) -> None:
        with suppress(StreamServeError, TimeoutError):
            await self.fleet.client(worker).abort(request_id, attempt, timeout_seconds=ABORT_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What one request took. Times in seconds; None where it did not come so far."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    predicted_ttft_seconds: float | None = None
    predicted_tpot_seconds: float | None = None
    queue_seconds: float | None = None
    tokens: int = 0
    chunks: int = 0
    sent_bytes: int = 0


class _Run:
    """One request on its way. Its task is the front's own: cancelling that task is how a client leaves."""

    def __init__(self, owner: Orchestrator, request: GenerationRequest, write: Write, worker_request_id: str) -> None:
        self._owner = owner
        self._request = request
        self._write = write
        self._worker_request_id = worker_request_id
        self._session = core.Session(
            one_token=request.max_tokens == 1,
            policy=lambda: owner.config().failure_policy,
            may_retry=self._may_retry,
        )
        self._placements: dict[int, Placement] = {}
        self._error: StreamServeError | None = None
        # Counted here and reported once: a labelled counter costs more than the rest of a chunk's bookkeeping.
        self._chunks = 0
        self._bytes = 0
        self._first_at: float | None = None
        self._last_at: float | None = None
        self._placed_at: float | None = None
        self._placed_from = request.arrival_seconds
        self._prediction: tuple[float, float | None] | None = None
        self._placed_under: tuple[str, ConfigId] | None = None
        self._last_load: worker_pb2.LoadReport | None = None
        self.waits_for = ""
        self._watchdog = self._new_watchdog()

    async def drive(self) -> None:
        """Until the session is finished. Raises its error."""
        todo: deque[core.Action] = deque(self._session.handle(core.Admitted()))
        try:
            while todo:
                todo.extend(await self._guarded(todo.popleft()))
        except asyncio.CancelledError:
            late = self._owner.clock() >= self._request.deadline_seconds
            self._finish(core.DeadlinePassed() if late else core.ClientGone())
            if late and self._error is not None:
                raise self._error from None
            raise
        except StreamServeError as error:
            self._finish(core.ClientGone(error))
            raise
        except Exception as error:
            _log.exception("the router failed to serve a request")
            failure = InternalError(f"the router failed: {error!r}; report this with its log")
            self._finish(core.ClientGone(failure))
            raise failure from error
        if self._error is not None:
            raise self._error
        self._owner.budget.earn()

    @property
    def streamed_at(self) -> float:
        """When the client was sent something last; -inf before that."""
        return -math.inf if self._last_at is None else self._last_at

    @property
    def delivered(self) -> bool:
        """The client has the whole answer."""
        return isinstance(self._session.state, core.Finished) and self._session.state.error is None

    def close(self) -> None:
        """Give back whatever is still booked. Idempotent."""
        for placement in self._placements.values():
            placement.release()
        self._placements.clear()

    def timing(self) -> Timing:
        tokens, first, last = self._session.tokens_sent, self._first_at, self._last_at
        tpot = (last - first) / (tokens - 1) if first is not None and last is not None and tokens > 1 else None
        return Timing(
            ttft_seconds=None if first is None else first - self._request.arrival_seconds,
            tpot_seconds=tpot,
            predicted_ttft_seconds=self._prediction[0] if self._prediction else None,
            predicted_tpot_seconds=self._prediction[1] if self._prediction else None,
            queue_seconds=None if self._placed_at is None else self._placed_at - self._placed_from,
            tokens=tokens,
            chunks=self._chunks,
            sent_bytes=self._bytes,
        )

    def ended(self, timing: Timing) -> Ended | None:
        """What counts for goodput; None for an answer that no decode worker has ended."""
        if self._placed_under is None or self._last_load is None:
            return None
        lane, config = self._placed_under
        return Ended(
            lane=lane,
            workload=self._request.workload,
            config=config,
            signals=self._last_load.signals,
            engine_seconds=self._last_load.engine_seconds,
            tokens=timing.tokens,
            ttft_seconds=timing.ttft_seconds,
            tpot_seconds=timing.tpot_seconds,
        )

    async def _guarded(self, action: core.Action) -> list[core.Action]:
        """Do one action under the watchdog; a limit that passes becomes an event."""
        if not isinstance(action, core.Pick | core.StartPrefill | core.StartDecode | core.Forward):
            self._at_once(action)
            return []
        try:
            with self._watchdog:
                return await self._perform(action)
        except Expired as expired:
            return self._session.handle(self._expiry(action, expired))
        finally:
            self._watchdog = self._new_watchdog()

    def _expiry(self, action: core.Action, expired: Expired) -> core.Event:
        match expired.cause, action:
            case Cause.SLOW_CONSUMER, _:
                waited = self._owner.limits.slow_consumer_seconds
                return core.ClientGone(
                    SlowConsumer(f"the client read nothing for {waited:g} s; read faster, or ask for less at once")
                )
            case Cause.STALL, core.StartPrefill() | core.StartDecode():
                prefilling = isinstance(action, core.StartPrefill)
                worker = action.route.prefill_worker if prefilling else action.route.decode_worker
                self._owner.fleet.on_result(worker, WorkerLost(f"{worker} stalled", reason="WORKER_STALLED"))
                return core.Stalled(action.attempt, expired.waited_seconds)
            case _:
                return core.DeadlinePassed()

    async def _perform(
        self, action: core.Pick | core.StartPrefill | core.StartDecode | core.Forward
    ) -> list[core.Action]:
        match action:
            case core.Pick():
                return self._session.handle(await self._pick(action))
            case core.StartPrefill():
                return self._session.handle(await self._prefill(action))
            case core.StartDecode():
                return await self._decode(action)
            case core.Forward():
                return await self._forward(action)

    def _at_once(self, action: core.Action) -> None:
        match action:
            case core.AbortWorkers():
                self._owner.abort_workers(self._worker_request_id, action.attempt, action.workers)
            case core.Release():
                if (placement := self._placements.pop(action.attempt, None)) is not None:
                    placement.release()
            case core.Fail():
                self._error = action.error
            case _:
                pass

    def _finish(self, event: core.Event) -> None:
        """The task is being taken away: end the session with what needs no waiting."""
        for action in self._session.handle(event):
            self._at_once(action)

    def _may_retry(self) -> bool:
        allowed = self._owner.budget.spend()
        self._owner.metrics.retried("allowed" if allowed else "over budget")
        return allowed

    async def _pick(self, action: core.Pick) -> core.Event:
        self._watchdog.only_deadline()
        if action.reason:
            _log.warning("attempt %d: %s", action.attempt, action.reason)
            self._placed_from = self._owner.clock()
        try:
            placement = await self._owner.dispatcher.place(
                self._request,
                excluded=action.excluded,
                local=action.local,
                again=action.attempt > 1,
            )
        except StreamServeError as error:
            if action.attempt == 1 or isinstance(error, DeadlineExceeded):
                return core.Refused(error)
            return core.PickFailed(action.attempt, error)
        self._placements[action.attempt] = placement
        self._placed_at = self._owner.clock()
        chosen = placement.decision.chosen
        self._placed_under = (chosen.lane, self._owner.config().id)
        self._prediction = (chosen.ttft_seconds, chosen.decode.tpot_seconds if chosen.decode else None)
        return core.Picked(
            action.attempt,
            core.Route(
                lane=chosen.lane,
                prefill_worker=chosen.prefill_worker or "",
                decode_worker=chosen.decode_worker or "",
                mode=chosen.mode.value,
            ),
        )

    async def _prefill(self, action: core.StartPrefill) -> core.Event:
        worker = action.route.prefill_worker
        placement = self._placements[action.attempt]
        self.waits_for = worker
        self._watchdog.expect(Cause.STALL, self._patience(placement.decision.chosen.ttft_seconds))
        request = worker_pb2.PrefillRequest(
            request_id=self._worker_request_id,
            attempt=action.attempt,
            prompt=self._request.prompt,
            sampling=self._request.sampling_message,
            workload=self._request.workload,
            priority=self._request.priority,
            dispatch=placement.prefill.dispatch() if placement.prefill else None,
            final=action.route.mode == core.PREFILL_ONLY,
        )
        try:
            client = self._owner.fleet.client(worker)
            response = await client.prefill(request, timeout_seconds=self._left())
        except StreamServeError as error:
            return core.PrefillFailed(action.attempt, self._judged(worker, error))
        self._owner.fleet.on_result(worker, None)
        if response.load.signals:
            self._owner.fleet.on_load_report(worker, response.load.signals)
        placement.release_prefill()
        if request.final:
            answer = response.answer
            answer.ClearField("load")
            return core.Chunk(
                action.attempt,
                answer.first_token_index,
                len(answer.token_ids),
                answer.finish_reason != common_pb2.FINISH_REASON_UNSPECIFIED,
                answer.SerializeToString(),
            )
        return core.PrefillDone(
            action.attempt,
            core.Handoff(
                prompt_token_ids=response.prompt_token_ids.ids_le32,
                kv_handle=response.kv_handle,
                cached_prompt_tokens=response.cached_prompt_tokens,
            ),
        )

    async def _decode(self, action: core.StartDecode) -> list[core.Action]:
        worker = action.route.decode_worker
        placement = self._placements[action.attempt]
        chosen = placement.decision.chosen
        self.waits_for = worker
        between = self._patience(chosen.decode.tpot_seconds if chosen.decode else 0.0)
        self._watchdog.expect(Cause.STALL, self._patience(chosen.ttft_seconds))
        session, attempt, head = self._session, action.attempt, _ATTEMPT_FIELD[action.attempt]
        try:
            client = self._owner.fleet.client(worker)
            request = self._decode_request(action, placement)
            async with client.decode(request, timeout_seconds=self._left()) as stream:
                async for chunk in stream:
                    message = chunk.message
                    # Nearly every chunk: forwarded as it is, with as little done to it as can be (bench/router_cpu.py).
                    if (
                        self._first_at is not None
                        and not message.finish_reason
                        and not message.HasField("load")
                        and session.goes_on(attempt, message.first_token_index, len(message.token_ids))
                    ):
                        await self._send(head + chunk.raw)
                        self._watchdog.expect(Cause.STALL, between)
                        continue
                    left = await self._take(action, chunk, worker)
                    if left:
                        if self.delivered:
                            await self._let_end(stream)
                            self._owner.fleet.on_result(worker, None)
                        return left
                    self._watchdog.expect(Cause.STALL, between)
        except ClientLeft:
            # It was no read from the worker that failed.
            raise
        except StreamServeError as error:
            return self._session.handle(core.DecodeFailed(action.attempt, self._judged(worker, error)))
        self._owner.fleet.on_result(worker, WorkerLost("the stream ended without its last chunk"))
        return self._session.handle(core.DecodeEnded(action.attempt))

    def _decode_request(self, action: core.StartDecode, placement: Placement) -> worker_pb2.DecodeRequest:
        handoff = action.handoff
        prompt = self._request.prompt
        if handoff.prompt_token_ids:
            prompt = common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=handoff.prompt_token_ids))
        return worker_pb2.DecodeRequest(
            request_id=self._worker_request_id,
            attempt=action.attempt,
            prompt=prompt,
            sampling=self._request.sampling_message,
            workload=self._request.workload,
            priority=self._request.priority,
            dispatch=placement.decode.dispatch() if placement.decode else None,
            kv_handle=handoff.kv_handle,
            cached_prompt_tokens=handoff.cached_prompt_tokens,
        )

    async def _take(self, action: core.StartDecode, chunk: DecodeChunk, worker: str) -> list[core.Action]:
        """One chunk through the session; what is left to do when it was not merely forwarded."""
        message, raw = chunk.message, chunk.raw
        if message.HasField("load"):
            self._owner.fleet.on_load_report(worker, message.load.signals)
            if message.finish_reason:
                self._last_load = worker_pb2.LoadReport()
                self._last_load.CopyFrom(message.load)
            message.ClearField("load")
            raw = message.SerializeToString()
        event = core.Chunk(
            action.attempt,
            message.first_token_index,
            len(message.token_ids),
            message.finish_reason != common_pb2.FINISH_REASON_UNSPECIFIED,
            raw,
        )
        left: list[core.Action] = []
        for step in self._session.handle(event):
            left += await self._forward(step) if isinstance(step, core.Forward) else [step]
        return left

    async def _forward(self, action: core.Forward) -> list[core.Action]:
        if action.opening:
            route = inference_pb2.Route(
                lane=action.route.lane,
                prefill_worker=action.route.prefill_worker,
                decode_worker=action.route.decode_worker,
                prefill_mode=action.route.mode,
            )
            head = inference_pb2.GenerateResponse(attempt=action.attempt, route=route).SerializeToString()
        else:
            head = _ATTEMPT_FIELD[action.attempt]
        if self._first_at is None and self._session.tokens_sent:
            self._first_at = self._owner.clock()
        await self._send(head + action.payload)
        return self._session.handle(core.Delivered(action.attempt))

    def _send(self, data: bytes) -> Awaitable[None]:
        """Not a coroutine of its own: one more for each chunk of each stream shows in the router's CPU."""
        self._last_at = self._owner.clock()
        self._chunks += 1
        self._bytes += len(data)
        self._watchdog.expect(Cause.SLOW_CONSUMER, self._owner.limits.slow_consumer_seconds)
        return self._write(data)

    async def _let_end(self, stream: object) -> None:
        """Read to the worker's own end, which follows the last chunk at once: a cancel would look like an abort."""
        with suppress(TimeoutError, StreamServeError):
            async with asyncio.timeout(_END_SECONDS):
                async for _ in stream:  # type: ignore[attr-defined]
                    pass

    def _judged(self, worker: str, error: StreamServeError) -> StreamServeError:
        """Tell the fleet, and see a cancellation that nobody here asked for as what it is."""
        if isinstance(error, Cancelled):
            error = WorkerLost(f"{worker} ended the request")
        if isinstance(error, DeadlineExceeded) and self._owner.clock() < self._request.deadline_seconds - 1.0:
            error = WorkerLost(f"{worker} gave up early: {error.message}")
        self._owner.fleet.on_result(worker, error)
        self._owner.metrics.worker_failed(error.reason)
        return error

    def _patience(self, predicted_seconds: float) -> float:
        return max(self._owner.limits.stall_seconds, STALL_FACTOR * predicted_seconds)

    def _new_watchdog(self) -> Watchdog:
        return Watchdog(self._request.deadline_seconds, self._no_room_until)

    def _no_room_until(self) -> float:
        sent = self._session.tokens_sent
        return self._owner.fleet.no_room_until(
            self.waits_for,
            self._request.prompt_tokens + sent,
            begun=sent > 0,
            streamed_at=lambda: self._owner.streamed_at(self.waits_for),
        )

    def _left(self) -> float:
        return max(0.001, self._request.deadline_seconds - self._owner.clock() - DEADLINE_MARGIN_SECONDS)


_ATTEMPT_FIELD: Final = {n: bytes((0x08, n)) for n in range(1, 16)}
