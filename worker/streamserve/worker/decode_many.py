"""Many decode calls of one router on one gRPC stream: what a step of the engine yields for them all is one message.

A gRPC message costs much in Python, whatever is in it (docs/decisions/20261123-decode-calls-share-a-stream.md). So
chunks are not written one by one: each call puts its own into an outbox, and whoever writes takes all that lie there.
Nothing waits for company: an idle stream writes a chunk at once, and a busy one finds, when it comes back, what all
calls have put meanwhile.

    asks      start, cancel, pause, resume: one reader
    calls     a task each, which puts its chunks into the outbox
    outbox    for each call one part: all that came since the last message
    parts     one writer

The stream ends when the router has closed its side, or the worker stops, and no call is left; or when nothing of it is
read for as long as a slow reader is borne with. Then every call on it that still runs is cancelled, as is one that the
router has let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

from streamserve.contract.errors import InternalError, SlowConsumer, StreamServeError
from streamserve.runtime import logs, status
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import worker_pb2
from streamserve.worker import wire
from streamserve.worker.outbox import Load, Outbox, Part
from streamserve.worker.pipeserve.engine import Chunk

SLOW_READER_SECONDS: Final = 30.0
MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""Parts are spread over several messages past this; far below what a peer accepts."""
_END_SECONDS: Final = 1.0
_log = logs.get(__name__)

Deliver = Callable[[Chunk, Load | None], Awaitable[None]]
Answer = Callable[[worker_pb2.DecodeRequest, float | None, Deliver], Awaitable[None]]
Write = Callable[[worker_pb2.DecodeManyResponse], Awaitable[None]]


class Watcher(Protocol):
    """What the worker wants to know of the stream, and to say on it."""

    def sent(self, tokens: int) -> None:
        """A message with so many, of all its calls together, was written."""

    def merged(self, chunks: int) -> None:
        """So many chunks went into messages with earlier ones of their calls."""

    def signals_due(self, router_id: int) -> bytes | None:
        """The load to report now, or None: it has just been."""


class ManyCalls:
    """One stream, from its first ask to its end."""

    def __init__(self, answer: Answer, watcher: Watcher, slow_reader_seconds: float) -> None:
        """`answer` does one request within so many seconds, delivers its chunks, and raises StreamServeError."""
        self._answer = answer
        self._watcher = watcher
        self._slow_reader_seconds = slow_reader_seconds
        self._outbox = Outbox()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._tasks = Tasks("decode many")
        self._router_id = 0
        self._no_more = False

    async def serve(self, asks: AsyncIterator[worker_pb2.DecodeManyRequest], write: Write) -> None:
        """Until the stream is over. Raises SlowConsumer when its reader does not read."""
        self._tasks.spawn("asks", self._hear(asks))
        try:
            # Says that this worker knows such streams: until then nothing is asked.
            await self._send(worker_pb2.DecodeManyResponse(), write)
            while parts := await self._outbox.take():
                for message, tokens in self._messages(parts):
                    await self._send(message, write)
                    if any(part.response for part in message.parts):
                        self._watcher.sent(tokens)
                self._count_merged()
        finally:
            self._count_merged()
            await self._tasks.stop(_END_SECONDS)

    def _count_merged(self) -> None:
        self._watcher.merged(self._outbox.merged)
        self._outbox.merged = 0

    def stop(self) -> None:
        """The worker stops: the stream ends with its last call, at once where it has none."""
        self._no_more = True
        self._close_if_over()

    async def _hear(self, asks: AsyncIterator[worker_pb2.DecodeManyRequest]) -> None:
        try:
            async for ask in asks:
                match ask.WhichOneof("ask"):
                    case "start":
                        self._start(ask.start)
                    case "cancel":
                        self._cancel(ask.cancel)
                    case "pause":
                        self._pause(ask.pause)
                    case "resume":
                        self._outbox.resume(ask.resume)
        except Exception:
            # Who cannot be heard cannot cancel either.
            _log.exception("what a router asks on a shared stream cannot be read: the stream is ended")
            self._outbox.close()
        self._no_more = True
        self._close_if_over()

    def _start(self, call: worker_pb2.DecodeCall) -> None:
        if call.call in self._calls:
            _log.error("a router gave two calls the number %d: the second is not answered", call.call)
            return
        if call.request.HasField("dispatch"):
            self._router_id = call.request.dispatch.router_id
        task = self._calls[call.call] = self._tasks.spawn(f"call {call.call}", self._run(call))
        # Not within it: one that is cancelled before its first step never comes to its end.
        task.add_done_callback(lambda _: self._over(call.call))

    def _cancel(self, number: int) -> None:
        if (task := self._calls.get(number)) is not None:
            task.cancel()

    def _pause(self, number: int) -> None:
        task = self._calls.get(number)
        if task is not None and not task.done():
            self._outbox.pause(number)

    async def _run(self, call: worker_pb2.DecodeCall) -> None:
        number, limit = call.call, call.timeout_ms / 1e3 if call.timeout_ms else None

        is_whole = False

        async def deliver(chunk: Chunk, load: Load | None) -> None:
            nonlocal is_whole
            if load is None:
                await self._outbox.put(number, chunk)
            else:
                await self._outbox.put_last(number, chunk, load)
                is_whole = True

        try:
            await self._answer(call.request, limit, deliver)
        except StreamServeError as error:
            self._outbox.end(number, _packed(error))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._outbox.drop(number)
                raise
            self._outbox.end(number, _packed(InternalError("the request was given up inside the worker")))
        except Exception as error:
            _log.exception("a decode call failed")
            self._outbox.end(number, _packed(InternalError(f"the worker failed: {type(error).__name__}")))
        else:
            if not is_whole:
                self._outbox.end(number)

    def _over(self, number: int) -> None:
        del self._calls[number]
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._no_more and not self._calls:
            self._outbox.close()

    def _messages(self, parts: dict[int, Part]) -> list[tuple[worker_pb2.DecodeManyResponse, int]]:
        """With the tokens in each."""
        messages: list[tuple[worker_pb2.DecodeManyResponse, int]] = []
        message, size, tokens, report = worker_pb2.DecodeManyResponse(), 0, 0, True
        for number, part in parts.items():
            response, ended, error = b"", part.ended, part.error
            try:
                if part.chunk is not None:
                    answer = wire.decode_response(part.chunk)
                    if part.load is not None:
                        answer.load.CopyFrom(part.load())
                    elif report:
                        report = False
                        if (signals := self._watcher.signals_due(self._router_id)) is not None:
                            answer.load.signals = signals
                    response = answer.SerializeToString()
            except Exception as failure:
                # Of one answer only: the others on this stream have nothing to do with it.
                _log.exception("a part of an answer cannot be sent")
                self._cancel(number)
                ended, error = True, _packed(InternalError(f"the worker failed: {type(failure).__name__}"))
            if size and size + len(response) > MAX_MESSAGE_BYTES:
                messages.append((message, tokens))
                message, size, tokens = worker_pb2.DecodeManyResponse(), 0, 0
            message.parts.add(call=number, response=response, ended=ended, error=error)
            size += len(response)
            tokens += part.tokens
        return [*messages, (message, tokens)]

    async def _send(self, message: worker_pb2.DecodeManyResponse, write: Write) -> None:
        try:
            async with asyncio.timeout(self._slow_reader_seconds) as timer:
                await write(message)
        except TimeoutError:
            if not timer.expired():
                raise
            raise SlowConsumer(
                f"nothing of the stream was read for {self._slow_reader_seconds:g} s, so it was ended; "
                "read faster or ask for less"
            ) from None


def _packed(error: StreamServeError) -> bytes:
    packed: bytes = status.to_status(error).SerializeToString()
    return packed
