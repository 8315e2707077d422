"""Calls to a router as a client makes them, and what came back, with the positions checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from streamserve.contract import tokens
from streamserve.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc


def request(
    prompt: str | Sequence[int] = "hello world",
    *,
    workload: str = "",
    priority: int = 0,
    model: str = "",
    **sampling: object,
) -> inference_pb2.GenerateRequest:
    if isinstance(prompt, str):
        form = common_pb2.Prompt(text=prompt)
    else:
        form = common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=tokens.pack(prompt)))
    return inference_pb2.GenerateRequest(
        model=model,
        prompt=form,
        sampling=common_pb2.SamplingParams(**sampling),
        workload=workload,
        priority=priority,
    )


@dataclass(slots=True)
class Answer:
    """What a client has received. `add` fails on a position that comes twice, late or not at all."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    chunks: list[inference_pb2.GenerateResponse] = field(default_factory=list)
    error: Refusal | None = None

    def add(self, chunk: inference_pb2.GenerateResponse) -> None:
        assert chunk.first_token_index == len(self.token_ids), "a position is missing or came twice"
        assert chunk.attempt >= 1
        assert not self.chunks or not self.chunks[-1].finish_reason, "a chunk after the last one"
        self.token_ids += chunk.token_ids
        self.text += chunk.text
        self.chunks.append(chunk)

    @property
    def route(self) -> inference_pb2.Route:
        return self.chunks[0].route

    @property
    def usage(self) -> common_pb2.Usage:
        return self.chunks[-1].usage


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status with its details."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    retry_seconds: float | None = None
    field: str = ""


def refusal_of(error: grpc.RpcError) -> Refusal:
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    reason, retry, at = "", None, ""
    for detail in _details(error):
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            again = error_details_pb2.RetryInfo()
            detail.Unpack(again)
            retry = again.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            at = bad.field_violations[0].field
    return Refusal(error.code(), error.details() or "", reason, retry, at)


def _details(error: grpc.Call | grpc.aio.AioRpcError) -> Sequence[object]:
    if isinstance(error, grpc.aio.AioRpcError):
        from google.rpc import status_pb2

        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                return status_pb2.Status.FromString(value).details
        return ()
    status = rpc_status.from_call(error)
    return status.details if status is not None else ()


def generate(
    address: str,
    message: inference_pb2.GenerateRequest | None = None,
    *,
    timeout: float = 20.0,
    request_id: str = "",
    **sampling: object,
) -> Answer:
    """The whole answer; a status other than OK is in `error`."""
    answer = Answer()
    metadata = (("x-request-id", request_id),) if request_id else ()
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            for chunk in stub.Generate(message or request(**sampling), timeout=timeout, metadata=metadata):
                answer.add(chunk)
        except grpc.RpcError as error:
            answer.error = refusal_of(error)
    return answer


async def generate_async(
    channel: grpc.aio.Channel,
    message: inference_pb2.GenerateRequest,
    *,
    timeout: float = 20.0,
    request_id: str = "",
    answer: Answer | None = None,
) -> Answer:
    """The same for many at once; `answer` may be watched while it grows."""
    answer = Answer() if answer is None else answer
    metadata = (("x-request-id", request_id),) if request_id else ()
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    try:
        async for chunk in stub.Generate(message, timeout=timeout, metadata=metadata):
            answer.add(chunk)
    except grpc.aio.AioRpcError as error:
        answer.error = refusal_of(error)
    return answer


def get_fleet(address: str) -> admin_pb2.GetFleetResponse:
    with grpc.insecure_channel(address) as channel:
        return admin_pb2_grpc.AdminServiceStub(channel).GetFleet(admin_pb2.GetFleetRequest(), timeout=5)


def get_config(address: str) -> admin_pb2.GetConfigResponse:
    with grpc.insecure_channel(address) as channel:
        return admin_pb2_grpc.AdminServiceStub(channel).GetConfig(admin_pb2.GetConfigRequest(), timeout=5)


def explain(address: str, message: inference_pb2.GenerateRequest) -> admin_pb2.ExplainRouteResponse:
    with grpc.insecure_channel(address) as channel:
        return admin_pb2_grpc.AdminServiceStub(channel).ExplainRoute(
            admin_pb2.ExplainRouteRequest(request=message), timeout=5
        )
