"""Clients that misbehave: too much at once, one id twice, no time left, gone, or not reading. Nobody else notices."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from tests.support import calls
from tests.support.calls import generate, get_fleet, request
from tests.support.processes import LocalFleet, wait_until

from streamserve.v1 import inference_pb2_grpc

LONG = {"max_tokens": 1_500, "ignore_eos": True}


@pytest.fixture(autouse=True)
def whole_afterwards(fleet: LocalFleet) -> Iterator[None]:
    """After each of them nothing runs, nothing is booked, and an ordinary request is answered."""
    yield

    def free() -> bool:
        seen = get_fleet(fleet.grpc)
        booked = sum(worker.booked_requests for lane in seen.lanes for worker in lane.workers)
        return (seen.queued_requests, seen.running_requests, booked) == (0, 0, 0)

    wait_until(free, seconds=10, what="everything given back")
    answer = generate(fleet.grpc, max_tokens=4, ignore_eos=True)
    assert answer.error is None
    assert len(answer.token_ids) == 4


def test_a_message_of_64_mib_is_refused_by_grpc_itself(fleet: LocalFleet) -> None:
    with grpc.insecure_channel(fleet.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.Generate(request("x" * (64 << 20)), timeout=30))
        refused = calls.refusal_of(raised.value)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in refused.message
        assert list(stub.Generate(request(max_tokens=2), timeout=10)), "the connection survives"


def test_a_body_of_64_mib_is_413_before_it_is_read(fleet: LocalFleet) -> None:
    with http_connection(fleet) as connection:
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Length", str(64 << 20))
        connection.endheaders()
        response = connection.getresponse()
        error = json.loads(response.read())["error"]
    assert (response.status, error["code"], error["type"]) == (413, "body_too_large", "invalid_request_error")
    assert "send a shorter prompt" in error["message"]


def test_a_request_id_that_runs_already_is_refused_by_both_fronts(fleet: LocalFleet) -> None:
    with grpc.insecure_channel(fleet.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        first = stub.Generate(request(**LONG), timeout=30, metadata=(("x-request-id", "twin"),))
        next(first)
        second = generate(fleet.grpc, request(max_tokens=2), request_id="twin").error
        status, error = post(fleet, {"prompt": "hello", "max_tokens": 2}, **{"X-Request-Id": "twin"})
        first.cancel()
    assert second is not None
    assert (second.code, second.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST_ID")
    assert (status, error["code"]) == (409, "duplicate_request_id")
    assert second.message == error["message"]
    assert "choose another x-request-id" in second.message


@pytest.mark.parametrize("name", ["with a space", "x" * 129])
def test_a_request_id_that_is_none_is_refused_by_both_fronts(name: str, fleet: LocalFleet) -> None:
    refused = generate(fleet.grpc, request(max_tokens=2), request_id=name).error
    status, error = post(fleet, {"prompt": "hello", "max_tokens": 2}, **{"X-Request-Id": name})
    assert refused is not None
    assert (refused.code, status) == (grpc.StatusCode.INVALID_ARGUMENT, 400)
    assert refused.message == error["message"]
    assert "1 to 128 printable ASCII characters" in refused.message


def test_a_deadline_in_the_past_starts_nothing(fleet: LocalFleet) -> None:
    refused = generate(fleet.grpc, request(max_tokens=2), timeout=1e-6).error
    assert refused is not None
    assert refused.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "value",
    ["0", "-5", "soon", "1.5", "99999999999", "9" * 5_000],
    ids=["nothing", "below zero", "a word", "a fraction", "three years", "more digits than Python reads"],
)
def test_a_deadline_header_that_is_no_time_is_refused(value: str, fleet: LocalFleet) -> None:
    status, error = post(fleet, {"prompt": "hello"}, **{"X-Request-Timeout-Ms": value})
    assert (status, error["code"]) == (400, "invalid_request")
    assert "whole number of milliseconds above 0" in error["message"]


def test_a_deadline_that_is_too_short_ends_the_answer_with_504_or_429(fleet: LocalFleet) -> None:
    status, error = post(fleet, {"prompt": "hello", **LONG}, **{"X-Request-Timeout-Ms": "60"})
    assert (status, error["code"]) in ((504, "deadline_exceeded"), (429, "infeasible_deadline"))
    assert "allow more time" in error["message"]


def test_a_client_that_is_gone_in_mid_stream_is_let_go(fleet: LocalFleet) -> None:
    channel = grpc.insecure_channel(fleet.grpc)
    next(inference_pb2_grpc.InferenceServiceStub(channel).Generate(request(**LONG), timeout=30))
    channel.close()
    with http_connection(fleet) as connection:
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "hello", "stream": True, **LONG}))
        assert connection.getresponse().read(10)


def test_a_grpc_client_that_does_not_read_is_cut_off_with_a_reason(fleet: LocalFleet) -> None:
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)]
    with grpc.insecure_channel(fleet.grpc, options=options) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(request(logprobs=20, **LONG), timeout=60)
        next(call)
        wait_until(lambda: get_fleet(fleet.grpc).running_requests == 0, seconds=30, what="it is cut off")
        with pytest.raises(grpc.RpcError) as raised:
            list(call)
    refused = calls.refusal_of(raised.value)
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")
    assert "read faster" in refused.message


def test_an_http_client_that_does_not_read_is_cut_off(fleet: LocalFleet) -> None:
    host, _, port = fleet.router.ready["http"].rpartition(":")
    data = json.dumps({"prompt": "hello", "stream": True, "logprobs": 20, **LONG}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        raw.sendall(head.encode() + data)
        wait_until(lambda: get_fleet(fleet.grpc).running_requests == 1, seconds=10, what="it runs")
        wait_until(lambda: get_fleet(fleet.grpc).running_requests == 0, seconds=40, what="it is cut off")


@contextmanager
def http_connection(fleet: LocalFleet) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(fleet.router.ready["http"], timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def post(fleet: LocalFleet, content: dict[str, object], **headers: str) -> tuple[int, dict[str, str]]:
    """(status, the error object)."""
    with http_connection(fleet) as connection:
        connection.request("POST", "/v1/completions", json.dumps(content), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())["error"]
