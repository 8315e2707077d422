"""gRPC through real processes: every position is the one that the simulated model has there."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tests.support import calls
from tests.support.calls import generate, generate_async, request
from tests.support.processes import LocalFleet, wait_until

from streamserve.v1 import common_pb2, inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from streamserve.worker.pipeserve.simulated_tokens import decode, encode, expected_token

PROMPT = "a prompt that moves at least one block of KV"


def want(prompt: str, count: int) -> list[int]:
    ids = encode(prompt, 4_096)
    return [expected_token(ids, position) for position in range(count)]


def states(fleet: LocalFleet) -> dict[str, worker_pb2.GetStateResponse]:
    out = {}
    for worker in fleet.workers:
        with grpc.insecure_channel(worker.ready["grpc"]) as channel:
            out[worker.name] = worker_pb2_grpc.WorkerServiceStub(channel).GetState(
                worker_pb2.GetStateRequest(), timeout=5
            )
    return out


def free(fleet: LocalFleet) -> bool:
    """Nothing runs, no block is used, nothing is booked, nothing waits."""
    view = calls.get_fleet(fleet.grpc)
    booked = sum(worker.booked_requests for lane in view.lanes for worker in lane.workers)
    used = sum(state.running_requests + state.kv_blocks_used for state in states(fleet).values())
    return booked + used + view.queued_requests + view.running_requests == 0


def test_text_streams_through_both_workers_of_a_lane(fleet: LocalFleet) -> None:
    answer = generate(fleet.grpc, request(PROMPT, max_tokens=40, ignore_eos=True))
    assert answer.error is None
    assert answer.token_ids == want(PROMPT, 40)
    assert answer.text == decode(answer.token_ids)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), 40)
    assert answer.usage.kv_transfer_bytes > 0
    assert answer.route.prefill_mode == "remote"
    assert answer.route.prefill_worker == f"{answer.route.lane}-prefill-0"
    assert answer.route.decode_worker == f"{answer.route.lane}-decode-0"
    assert answer.chunks[-1].finish_reason == common_pb2.FINISH_REASON_LENGTH


def test_token_ids_and_text_of_the_same_prompt_give_the_same_answer(fleet: LocalFleet) -> None:
    by_ids = generate(fleet.grpc, request(encode(PROMPT, 4_096), max_tokens=9, ignore_eos=True))
    assert by_ids.token_ids == want(PROMPT, 9)


def test_one_token_is_answered_by_prefill(fleet: LocalFleet) -> None:
    answer = generate(fleet.grpc, request(PROMPT, max_tokens=1, ignore_eos=True))
    assert answer.token_ids == want(PROMPT, 1)
    assert (answer.route.prefill_mode, answer.route.decode_worker) == ("prefill-only", "")


def test_two_hundred_streams_at_once_are_all_right_and_leave_nothing(fleet: LocalFleet) -> None:
    async def all_at_once() -> list[calls.Answer]:
        async with grpc.aio.insecure_channel(fleet.grpc) as channel:
            return await asyncio.gather(
                *(
                    generate_async(channel, request(f"prompt {n}", max_tokens=12, ignore_eos=True), timeout=60)
                    for n in range(200)
                )
            )

    answers = asyncio.run(all_at_once())
    for n, answer in enumerate(answers):
        assert answer.error is None
        assert answer.token_ids == want(f"prompt {n}", 12)
    assert {answer.route.lane for answer in answers} == {"lane-0", "lane-1"}
    wait_until(lambda: free(fleet), seconds=5, what="everything given back")


def test_the_request_id_comes_back(fleet: LocalFleet) -> None:
    with grpc.insecure_channel(fleet.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(request(max_tokens=2), timeout=10, metadata=(("x-request-id", "mine-1"),))
        list(call)
        assert ("x-request-id", "mine-1") in [tuple(pair) for pair in call.initial_metadata()]


def test_cancelling_in_mid_stream_frees_both_workers(fleet: LocalFleet) -> None:
    with grpc.insecure_channel(fleet.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for chunks in (0, 1, 5):
            call = stub.Generate(request(PROMPT, max_tokens=800, ignore_eos=True), timeout=30)
            for _ in range(chunks):
                next(call)
            call.cancel()
    wait_until(lambda: free(fleet), seconds=5, what="everything given back")


def test_a_client_that_vanishes_frees_both_workers(fleet: LocalFleet) -> None:
    channel = grpc.insecure_channel(fleet.grpc)
    call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
        request(PROMPT, max_tokens=800, ignore_eos=True), timeout=30
    )
    next(call)
    channel.close()
    wait_until(lambda: free(fleet), seconds=5, what="everything given back")


def test_the_deadline_ends_a_stream(fleet: LocalFleet) -> None:
    began = time.monotonic()
    answer = generate(fleet.grpc, request(PROMPT, max_tokens=900, ignore_eos=False), timeout=0.3)
    assert answer.error is not None
    assert answer.error.code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert time.monotonic() - began < 2.0
    wait_until(lambda: free(fleet), seconds=5, what="everything given back")


def test_a_running_request_id_cannot_be_used_twice(fleet: LocalFleet) -> None:
    with grpc.insecure_channel(fleet.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(
            request(PROMPT, max_tokens=800, ignore_eos=True), timeout=30, metadata=(("x-request-id", "twin"),)
        )
        next(call)
        second = generate(fleet.grpc, request(max_tokens=2), request_id="twin")
        call.cancel()
    assert second.error is not None
    assert (second.error.code, second.error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST_ID")
    wait_until(lambda: free(fleet), seconds=5, what="everything given back")
    assert generate(fleet.grpc, request(max_tokens=2), request_id="twin").error is None


def test_a_reader_that_stops_is_cut_off_and_harms_nobody(fleet: LocalFleet) -> None:
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384)]
    with grpc.insecure_channel(fleet.grpc, options=options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(request(PROMPT, max_tokens=3_000, logprobs=20, ignore_eos=True), timeout=60)
        next(call)
        with ThreadPoolExecutor() as pool:
            others = list(pool.map(lambda n: generate(fleet.grpc, request(f"p {n}", max_tokens=8)), range(8)))
        assert [other.error for other in others] == [None] * 8
        wait_until(lambda: free(fleet), seconds=20, what="the slow reader's request is over")
        with pytest.raises(grpc.RpcError) as raised:
            for _ in call:
                pass
    refusal = calls.refusal_of(raised.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_CONSUMER")


def test_a_larger_message_than_the_limit_is_refused_and_the_connection_survives(fleet: LocalFleet) -> None:
    with grpc.insecure_channel(fleet.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.Generate(request("x" * (64 << 20)), timeout=30))
        assert calls.refusal_of(raised.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list(stub.Generate(request(max_tokens=2), timeout=10))


def test_explain_shows_every_candidate_and_sends_nothing(fleet: LocalFleet) -> None:
    answer = calls.explain(fleet.grpc, request(PROMPT, max_tokens=20))
    assert answer.chosen in ("lane-0", "lane-1")
    assert {candidate.lane for candidate in answer.candidates} == {"lane-0", "lane-1"}
    assert free(fleet)


def test_many_threads_of_one_channel(fleet: LocalFleet) -> None:
    failures: list[object] = []

    def one(n: int) -> None:
        answer = generate(fleet.grpc, request(f"thread {n}", max_tokens=5, ignore_eos=True))
        if answer.error or answer.token_ids != want(f"thread {n}", 5):
            failures.append(answer)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []


def _with_unknown_field() -> bytes:
    return request(max_tokens=2).SerializeToString() + b"\x98\x06\x01"


BAD: dict[str, tuple[inference_pb2.GenerateRequest, grpc.StatusCode, str, str]] = {
    "no prompt": (inference_pb2.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT, "prompt", "missing"),
    "empty text": (request(""), grpc.StatusCode.INVALID_ARGUMENT, "prompt.text", "empty"),
    "no token ids": (request([]), grpc.StatusCode.INVALID_ARGUMENT, "prompt.token_ids", "empty"),
    "half a token id": (
        inference_pb2.GenerateRequest(prompt=common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids_le32=b"abc"))),
        grpc.StatusCode.INVALID_ARGUMENT,
        "prompt.token_ids",
        "4 little-endian bytes",
    ),
    "a token id outside the vocabulary": (
        request([1, 4_000_000_000], max_tokens=4),
        grpc.StatusCode.INVALID_ARGUMENT,
        "prompt",
        "vocabulary",
    ),
    "a prompt over the limit": (
        request([7] * 100_000, max_tokens=4),
        grpc.StatusCode.INVALID_ARGUMENT,
        "prompt",
        "shorten the prompt",
    ),
    "a text over the limit": (request("x" * 100_000, max_tokens=4), grpc.StatusCode.INVALID_ARGUMENT, "prompt", ""),
    "max_tokens 0": (
        request(max_tokens=0),
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.max_tokens",
        "at least 1",
    ),
    "max_tokens over the model's length": (
        request(max_tokens=1_000_000),
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.max_tokens",
        "leaves",
    ),
    "a temperature that is no number": (
        request(temperature=float("nan")),
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.temperature",
        "use a number",
    ),
    "a negative temperature": (
        request(temperature=-1.0),
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling.temperature",
        "from 0 to 2",
    ),
    "a model that is not served": (request(model="gpt-9"), grpc.StatusCode.NOT_FOUND, "", "served: tiny"),
    "a long workload name": (request(workload="w" * 33), grpc.StatusCode.INVALID_ARGUMENT, "workload", "at most 32"),
    "a priority out of range": (request(priority=11), grpc.StatusCode.INVALID_ARGUMENT, "priority", "-10 to 10"),
    "an unknown field": (
        inference_pb2.GenerateRequest.FromString(_with_unknown_field()),
        grpc.StatusCode.INVALID_ARGUMENT,
        "",
        "unsupported parameter: field number 99",
    ),
}


@pytest.mark.parametrize(("message", "code", "field", "text"), BAD.values(), ids=BAD.keys())
def test_bad_input(
    fleet: LocalFleet, message: inference_pb2.GenerateRequest, code: grpc.StatusCode, field: str, text: str
) -> None:
    answer = generate(fleet.grpc, message)
    assert answer.error is not None
    assert answer.error.code is code
    assert answer.error.reason
    assert text in answer.error.message
    assert answer.error.field.startswith(field)
    assert answer.chunks == []


def test_bytes_that_are_no_request_are_the_clients_fault(fleet: LocalFleet) -> None:
    with grpc.insecure_channel(fleet.grpc) as channel:
        call = channel.unary_stream("/streamserve.v1.InferenceService/Generate")
        with pytest.raises(grpc.RpcError) as raised:
            list(call(b"\xff\xff\xff", timeout=5))
    assert calls.refusal_of(raised.value).code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["x" * 129, "a b"])
def test_a_request_id_that_is_no_id_is_refused(fleet: LocalFleet, name: str) -> None:
    answer = generate(fleet.grpc, request(max_tokens=2), request_id=name)
    assert answer.error is not None
    assert answer.error.code is grpc.StatusCode.INVALID_ARGUMENT
