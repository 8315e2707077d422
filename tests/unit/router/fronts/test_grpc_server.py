"""Generate over gRPC, where the client is gone before the answer is."""

from __future__ import annotations

import logging
from typing import Any, cast

import grpc
import pytest
from grpc._cython import cygrpc

from streamserve.contract.errors import StreamServeError
from streamserve.router.fronts.grpc.server import InferenceServicer

LEFT = {
    "before the write": grpc.aio.UsageError("RPC already finished."),
    "in the moment of the write": cygrpc.ExecuteBatchError("Failed grpc_call_start_batch: 10"),
}


class Call:
    """A server's side of a call whose second message nobody takes any more."""

    def __init__(self, error: Exception) -> None:
        self.sent = list[bytes]()
        self.aborted = False
        self._error = error

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def time_remaining(self) -> None:
        return None

    async def send_initial_metadata(self, metadata: object) -> None:
        pass

    async def write(self, data: bytes) -> None:
        if self.sent:
            raise self._error
        self.sent.append(data)

    async def abort(self, *_: object) -> None:
        self.aborted = True


class Orchestrator:
    ended_with: BaseException | None = None

    async def serve(self, request: object, write: Any) -> None:
        try:
            await write(b"one")
            await write(b"two")
        except BaseException as error:
            self.ended_with = error
            raise


class NoChecks:
    def parsed(self, data: bytes) -> bytes:
        return data

    def checked(self, message: bytes, **_: object) -> bytes:
        return message


@pytest.mark.parametrize("error", LEFT.values(), ids=LEFT)
async def test_a_client_that_leaves_under_a_write_is_no_failure_of_the_router(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    call, orchestrator = Call(error), Orchestrator()
    servicer = InferenceServicer(cast("Any", orchestrator), cast("Any", NoChecks()), lambda: True)
    with caplog.at_level(logging.INFO):
        await servicer.generate(b"", call)
    assert isinstance(orchestrator.ended_with, StreamServeError)
    assert orchestrator.ended_with.code == "CANCELLED"
    assert call.sent == [b"one"]
    assert not call.aborted
    assert [record.levelname for record in caplog.records] == ["INFO"]
