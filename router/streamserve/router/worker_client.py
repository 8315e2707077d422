"""One worker as the scheduler sees it: five calls, errors of the contract's tree, bytes where bytes are enough.

A decode stream hands out raw chunks: the router forwards them behind an `attempt` field and looks inside only when it
needs to (`DecodeChunk.message`). Whether a stream has stalled is the session's judgement; here only the transport and
the call's own deadline can fail. Transport loss without details is WorkerLost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import Context
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from streamserve.contract.errors import InternalError
from streamserve.router.decode_many import Asks, SharedStream, UnknownMethod, closed
from streamserve.runtime.long_channel import LongChannel
from streamserve.runtime.status import from_rpc_error
from streamserve.runtime.tasks import Tasks
from streamserve.runtime.tls import TlsFiles
from streamserve.v1 import worker_pb2

_SERVICE: Final = "/streamserve.v1.WorkerService"
MAX_SHARED_REQUEST_BYTES: Final = 256 * 1024
"""A larger one goes by itself: nobody waits behind it, and one that is too large for gRPC ends no other."""
_Reply = TypeVar("_Reply", bound=Message)
_Call = TypeVar("_Call")
_Unary = grpc.aio.UnaryUnaryCall[Any, _Reply]


class DecodeChunk:
    """One DecodeResponse: its bytes, and the message, parsed at most once and only when asked for."""

    __slots__ = ("_message", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._message: worker_pb2.DecodeResponse | None = None

    @property
    def message(self) -> worker_pb2.DecodeResponse:
        """Raises InternalError when the worker sent no DecodeResponse."""
        if self._message is None:
            try:
                self._message = worker_pb2.DecodeResponse.FromString(self.raw)
            except DecodeError:
                raise InternalError("the worker sent a chunk that cannot be read: check its version") from None
        return self._message


class _Source(Protocol):
    """A gRPC call, or an answer on a stream that many share."""

    async def read(self) -> Any: ...

    def cancel(self) -> object: ...


class DecodeStream:
    """Chunks in order. `cancel` (or leaving the `async with`) ends the call on the worker too."""

    def __init__(self, source: _Source, otherwise: Callable[[], _Source] | None = None) -> None:
        """`otherwise` starts the call anew when the worker turns out not to know how `source` asked."""
        self._source = source
        self._otherwise = otherwise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DecodeChunk:
        try:
            raw = await self._read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            _unless_closed()
            raise
        if raw is grpc.aio.EOF:
            raise StopAsyncIteration
        return DecodeChunk(raw)

    async def _read(self) -> Any:
        try:
            return await self._source.read()
        except UnknownMethod:
            if self._otherwise is None:
                raise
        self._source, self._otherwise = self._otherwise(), None
        return await self._source.read()

    def cancel(self) -> None:
        self._source.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class _Calls:
    """The five on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.prefill = _unary(channel, "Prefill", worker_pb2.PrefillResponse)
        self.abort = _unary(channel, "Abort", worker_pb2.AbortResponse)
        self.get_state = _unary(channel, "GetState", worker_pb2.GetStateResponse)
        self.drain = _unary(channel, "Drain", worker_pb2.DrainResponse)
        self.decode: Callable[..., Any] = channel.unary_stream(
            f"{_SERVICE}/Decode",
            request_serializer=worker_pb2.DecodeRequest.SerializeToString,
            response_deserializer=None,
        )
        self.decode_many: Callable[..., Any] = channel.stream_stream(
            f"{_SERVICE}/DecodeMany",
            request_serializer=worker_pb2.DecodeManyRequest.SerializeToString,
            response_deserializer=None,
        )


class WorkerClient:
    """The connection to one start of one worker; a new boot gets a new client. It survives its certificate.

    Decode calls share one stream. A worker of a release that does not know that is asked for each by itself."""

    def __init__(
        self, address: str, *, tls: TlsFiles | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address = address
        self._channel = LongChannel(address, tls, _Calls, clock=clock)
        self._tasks = Tasks(f"worker {address}")
        self._shared: SharedStream | None = None
        self._shared_on: _Calls | None = None
        self._shares = True

    async def prefill(
        self, request: worker_pb2.PrefillRequest, *, timeout_seconds: float
    ) -> worker_pb2.PrefillResponse:
        return await self._answer(lambda calls: calls.prefill(request, timeout=timeout_seconds))

    def decode(self, request: worker_pb2.DecodeRequest, *, timeout_seconds: float) -> DecodeStream:
        """Starts the call at once; errors come from the stream, but for WorkerLost from a closed client."""
        end = time.monotonic() + timeout_seconds

        def alone() -> _Source:
            left = max(0.001, end - time.monotonic())
            call: _Source = _started(lambda: self._channel.start(lambda calls: calls.decode(request, timeout=left)))
            return call

        def alone_from_now_on() -> _Source:
            self._shares = False
            return alone()

        if not self._shares or request.ByteSize() > MAX_SHARED_REQUEST_BYTES:
            return DecodeStream(alone())
        return DecodeStream(_started(self._newest_stream).start(request, timeout_seconds), alone_from_now_on)

    def _newest_stream(self) -> SharedStream:
        """On the newest channel; one on an older channel goes on until its last call has ended."""
        newest = self._channel.newest()
        if self._shared is None or not self._shared.open or self._shared_on is not newest:
            if self._shared is not None:
                self._shared.retire()

            def begin(asks: Asks) -> Any:
                return self._channel.start(lambda calls: calls.decode_many(asks))

            # In a context of its own: its tasks outlive the request that comes first, and log nothing under its id.
            self._shared = Context().run(SharedStream, begin, self._tasks)
            self._shared_on = newest
        return self._shared

    async def abort(self, request_id: str, attempt: int = 0, *, timeout_seconds: float = 1.0) -> bool:
        """End a request on the worker; attempt 0 ends every attempt. True when the worker knew it."""
        request = worker_pb2.AbortRequest(request_id=request_id, attempt=attempt)
        return (await self._answer(lambda calls: calls.abort(request, timeout=timeout_seconds))).found

    async def get_state(self, *, timeout_seconds: float = 1.0) -> worker_pb2.GetStateResponse:
        request = worker_pb2.GetStateRequest()
        return await self._answer(lambda calls: calls.get_state(request, timeout=timeout_seconds))

    async def drain(self, *, timeout_seconds: float) -> int:
        """Refuse new work and finish what runs. Returns how many requests were left when time ran out."""
        request = worker_pb2.DrainRequest()
        answer = await self._answer(lambda calls: calls.drain(request, timeout=timeout_seconds))
        return answer.unfinished_requests

    async def close(self) -> None:
        """Close the connection; calls in flight end with WorkerLost."""
        await self._tasks.stop()
        await self._channel.close()

    async def _answer(self, begin: Callable[[_Calls], _Unary[_Reply]]) -> _Reply:
        try:
            return await _started(lambda: self._channel.start(begin))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            _unless_closed()
            raise


def _unary(channel: grpc.aio.Channel, method: str, reply: type[_Reply]) -> Callable[..., _Unary[_Reply]]:
    return channel.unary_unary(
        f"{_SERVICE}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=reply.FromString,
    )


def _started(start: Callable[[], _Call]) -> _Call:
    try:
        return start()
    except grpc.aio.UsageError:
        raise closed() from None


def _unless_closed() -> None:
    """A channel that is closed cancels its calls, which looks like a cancellation of the task that waits. It is
    told from a real one by the task's own count; then the worker is what was lost."""
    task = asyncio.current_task()
    if task is not None and task.cancelling() == 0:
        raise closed() from None
