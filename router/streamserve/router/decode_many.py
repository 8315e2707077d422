"""Decode calls to one worker that share one gRPC stream: one message for what a step yields for all of them.

Each call has an `Answer`, which reads like a gRPC call of its own: bytes, then the end or an error. One task reads the
stream and deals the parts out. When the stream breaks, every answer on it ends with that error. A reader that leaves
cancels its call on the worker; one that is slow has its call paused there, so what lies unread is bounded here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from streamserve.contract.errors import DeadlineExceeded, InternalError, StreamServeError, WorkerLost
from streamserve.runtime.status import from_rpc_error, from_status
from streamserve.runtime.tasks import Tasks
from streamserve.v1 import worker_pb2

MAX_UNREAD_BYTES: Final = 256 * 1024

Fault = Callable[[], Exception]
Asks = AsyncIterator[worker_pb2.DecodeManyRequest]


class UnknownMethod(Exception):
    """The worker is of a release without shared streams: call Decode."""


def closed() -> WorkerLost:
    return WorkerLost("the connection was closed because the worker restarted or is gone; send the request again")


class Answer:
    """What comes of one call. One reader."""

    __slots__ = ("_fault", "_over", "_owner", "_paused", "_timer", "_unread", "_unread_bytes", "_waiter", "number")

    def __init__(self, owner: SharedStream, number: int, timeout_seconds: float) -> None:
        self.number = number
        self._owner = owner
        self._unread: deque[bytes] = deque()
        self._unread_bytes = 0
        self._paused = False
        self._over = False
        self._fault: Fault | None = None
        loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer = loop.call_later(timeout_seconds, self._expire)

    async def read(self) -> Any:
        """The next DecodeResponse's bytes, or grpc.aio.EOF. Raises what ended the call, once all before it was read."""
        while not self._unread:
            if self._over:
                if self._fault is not None:
                    raise self._fault()
                return grpc.aio.EOF
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        raw = self._unread.popleft()
        self._unread_bytes -= len(raw)
        if self._paused and self._unread_bytes <= MAX_UNREAD_BYTES // 2:
            self._paused = False
            self._owner.resume(self.number)
        return raw

    def cancel(self) -> None:
        """Nobody reads any more. The worker is told, unless the call is over."""
        if not self._over:
            self.end(None)
            self._owner.leave(self.number)

    # For the stream

    def feed(self, raw: bytes) -> None:
        self._unread.append(raw)
        self._unread_bytes += len(raw)
        if self._unread_bytes > MAX_UNREAD_BYTES and not self._paused:
            self._paused = True
            self._owner.pause(self.number)
        self._wake()

    def end(self, fault: Fault | None) -> None:
        """Idempotent: the first end counts."""
        if not self._over:
            self._over, self._fault = True, fault
            self._timer.cancel()
            self._wake()

    def _expire(self) -> None:
        if not self._over:
            self.end(lambda: DeadlineExceeded("the deadline passed before the worker had ended its answer"))
            self._owner.leave(self.number)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SharedStream:
    """One DecodeMany call. `begin` starts it with what is asked on it; its task belongs to `tasks`."""

    def __init__(self, begin: Callable[[Asks], Any], tasks: Tasks) -> None:
        """Raises grpc.aio.UsageError on a closed channel."""
        self._asks: asyncio.Queue[worker_pb2.DecodeManyRequest | None] = asyncio.Queue()
        self._answers: dict[int, Answer] = {}
        self._numbers = itertools.count(1)
        self._retired = False
        # gRPC takes a message that cannot be sent for the call's end and hides why: an UNIMPLEMENTED would be INTERNAL.
        self._greeted = asyncio.Event()
        self.open = True
        self._fault: Fault = closed
        self._call = begin(self._asked())
        # Not at its end, which a task that is cancelled before its first step never reaches.
        tasks.spawn("answers", self._read()).add_done_callback(lambda _: self._over())

    def start(self, request: worker_pb2.DecodeRequest, timeout_seconds: float) -> Answer:
        number = next(self._numbers)
        answer = self._answers[number] = Answer(self, number, timeout_seconds)
        limit = max(1, round(timeout_seconds * 1e3))
        call = worker_pb2.DecodeCall(call=number, request=request, timeout_ms=limit)
        self._asks.put_nowait(worker_pb2.DecodeManyRequest(start=call))
        return answer

    def retire(self) -> None:
        """No call is started on it any more; it ends with its last one."""
        self._retired = True
        self._end_if_over()

    # For answers

    def leave(self, number: int) -> None:
        if self._answers.pop(number, None) is not None:
            self._asks.put_nowait(worker_pb2.DecodeManyRequest(cancel=number))
            self._end_if_over()

    def pause(self, number: int) -> None:
        self._asks.put_nowait(worker_pb2.DecodeManyRequest(pause=number))

    def resume(self, number: int) -> None:
        if number in self._answers:
            self._asks.put_nowait(worker_pb2.DecodeManyRequest(resume=number))

    async def _asked(self) -> Asks:
        await self._greeted.wait()
        while (ask := await self._asks.get()) is not None:
            yield ask

    async def _read(self) -> None:
        try:
            while (raw := await self._call.read()) is not grpc.aio.EOF:
                self._deal(raw)
            self._fault = _left
        except grpc.aio.AioRpcError as error:
            self._fault = _fault(error)
        except DecodeError:
            self._fault = _unreadable
        except asyncio.CancelledError:
            # A closed channel cancels its calls, which looks like a cancellation of this task; see worker_client.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise

    def _over(self) -> None:
        self.open = False
        # Ends the task that sends what is asked; a call that ended by itself leaves it waiting.
        self._greeted.set()
        self._asks.put_nowait(None)
        self._call.cancel()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.end(self._fault)

    def _deal(self, raw: bytes) -> None:
        self._greeted.set()
        for part in worker_pb2.DecodeManyResponse.FromString(raw).parts:
            answer = self._answers.get(part.call)
            if answer is None:
                continue  # its reader has left, and the worker may not have heard yet
            if part.response:
                answer.feed(part.response)
            if part.ended:
                del self._answers[part.call]
                answer.end(_told(part.error) if part.error else None)
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._retired and not self._answers and self.open:
            self.open = False
            self._asks.put_nowait(None)


def _left() -> StreamServeError:
    return WorkerLost("the worker ended the stream before the answer was whole; send the request again")


def _unreadable() -> StreamServeError:
    return InternalError("the worker sent a message that cannot be read: check its version")


def _told(packed: bytes) -> Fault:
    return lambda: from_status(packed)


def _fault(error: grpc.aio.AioRpcError) -> Fault:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return UnknownMethod
    return lambda: from_rpc_error(error)
