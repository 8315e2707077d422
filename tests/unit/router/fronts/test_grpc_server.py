"""Generate over gRPC: what it counts, and a client that is gone before the answer is."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any, cast

import grpc
import pytest
from grpc._cython import cygrpc
from tests.unit.router.flowguard.builders import lane
from tests.unit.router.scheduler.fakes import FakeFleet, Stage

from streamserve.contract.errors import StreamServeError
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.router.fronts.checks import Checks, ModelLimits
from streamserve.router.fronts.grpc.server import InferenceServicer
from streamserve.router.metrics import RouterMetrics
from streamserve.v1 import common_pb2, inference_pb2

LEFT = {
    "before the write": grpc.aio.UsageError("RPC already finished."),
    "in the moment of the write": cygrpc.ExecuteBatchError("Failed grpc_call_start_batch: 10"),
}


class Call:
    """A server's side of a call whose second message nobody takes any more."""

    def __init__(self, error: Exception | None = None) -> None:
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
        if self.sent and self._error is not None:
            raise self._error
        self.sent.append(data)

    async def abort(self, *_: object) -> None:
        self.aborted = True
        raise grpc.aio.AbortError


class Orchestrator:
    ended_with: BaseException | None = None

    def __init__(self) -> None:
        self.metrics = RouterMetrics()

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


ASKED = inference_pb2.GenerateRequest(prompt=common_pb2.Prompt(text="hello")).SerializeToString()
# name: (message, whether the router takes requests, outcome)
COUNTED: dict[str, tuple[bytes, bool, str]] = {
    "an answer": (ASKED, True, "OK"),
    "bytes that are no message": (b"\xff", True, "INVALID_REQUEST"),
    "a message without a prompt": (b"", True, "INVALID_REQUEST"),
    "another model": (ASKED + inference_pb2.GenerateRequest(model="big").SerializeToString(), True, "UNKNOWN_MODEL"),
    "a router that stops": (ASKED, False, "NOT_READY"),
}


@pytest.mark.parametrize(("data", "accepting", "outcome"), COUNTED.values(), ids=COUNTED)
async def test_whatever_is_asked_is_counted_once_with_its_outcome(data: bytes, accepting: bool, outcome: str) -> None:
    served = RuntimeConfig(id=ConfigId(uid="u", generation=1), served_names=("tiny",))
    checks = Checks(config=lambda: served, limits=ModelLimits, clock=time.monotonic)
    call = Call()
    async with Stage(FakeFleet([lane("a")])) as stage:
        with suppress(grpc.aio.AbortError):
            await InferenceServicer(stage.orchestrator, checks, lambda: accepting).generate(data, call)
        assert stage.outcomes() == {outcome: 1}
    assert call.aborted == (outcome != "OK")
