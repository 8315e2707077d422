"""Requests through real worker processes: positions, KV accounting, refusals, ends."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from lane import ROUTER_ID, Lane, decode_request, new_id, prefill_request, stub

from streamserve.contract import signals, tokens
from streamserve.contract.errors import (
    Cancelled,
    DeadlineExceeded,
    DuplicateRequest,
    InvalidRequest,
    StreamServeError,
    TransferFailed,
    WorkerLost,
)
from streamserve.contract.signals import Ack
from streamserve.runtime.status import from_rpc_error
from streamserve.v1 import common_pb2, worker_pb2
from streamserve.worker.pipeserve.simulator import expected_token


async def refusal(call: object) -> StreamServeError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def state_when(service: object, condition: object, seconds: float = 3.0) -> worker_pb2.GetStateResponse:
    end = time.monotonic() + seconds
    while True:
        state = await service.GetState(worker_pb2.GetStateRequest(), timeout=2)  # type: ignore[attr-defined]
        if condition(state):  # type: ignore[operator]
            return state
        assert time.monotonic() < end, f"never so: {state}"
        await asyncio.sleep(0.02)


async def test_every_position_arrives_once_and_the_kv_moves_as_counted(shared: Lane) -> None:
    async with stub(shared.prefill) as prefill, stub(shared.decode) as decode:
        before = await decode.GetState(worker_pb2.GetStateRequest(), timeout=5)

        async def one(number: int) -> worker_pb2.DecodeResponse:
            ask = prefill_request(range(300, 340 + number), max_tokens=64, workload="gsm8k")
            done = await prefill.Prefill(ask, timeout=10)
            prompt = tokens.unpack(done.prompt_token_ids.ids_le32)
            assert list(prompt) == list(range(300, 340 + number))
            got: list[int] = []
            async for message in decode.Decode(decode_request(ask, done), timeout=20):
                assert message.first_token_index == len(got)
                assert got or len(message.token_ids) == 1, "the first token comes alone"
                got.extend(message.token_ids)
            assert got == [expected_token(prompt, position) for position in range(64)]
            return message

        last = await asyncio.gather(*(one(n) for n in range(12)))
        for message in last:
            assert message.finish_reason == common_pb2.FINISH_REASON_LENGTH
            assert message.usage.completion_tokens == 64
            assert message.usage.drafted_tokens >= message.usage.accepted_tokens > 0
            assert message.HasField("load")
        state = await state_when(decode, lambda s: s.kv_blocks_used == 0 and not s.running_requests)
        moved = sum(message.usage.kv_transfer_bytes for message in last)
        assert state.kv_bytes_received == state.kv_bytes_expected
        assert state.kv_bytes_received - before.kv_bytes_received == moved > 0
        assert state.kv_transfers_received - before.kv_transfers_received == 12
        assert sum(state.depth_histogram) > 0
        await state_when(prefill, lambda s: s.kv_blocks_used == 0)


async def test_a_load_report_acknowledges_the_dispatch_and_excludes_the_request_that_ends(shared: Lane) -> None:
    async with stub(shared.prefill) as prefill, stub(shared.decode) as decode:
        ask = prefill_request()
        ask.dispatch.sequence = 41
        done = await prefill.Prefill(ask, timeout=10)
        assert signals.decode(done.load.signals).acks == (Ack(ROUTER_ID, 41),)
        reports = [
            signals.decode(message.load.signals)
            async for message in decode.Decode(decode_request(ask, done), timeout=10)
            if message.HasField("load")
        ]
        assert reports[0].running_requests + reports[0].waiting_requests == 1
        assert reports[-1].running_requests + reports[-1].waiting_requests == 0
        assert [r.epoch for r in reports] == sorted({r.epoch for r in reports})
        assert all(r.acks == (Ack(ROUTER_ID, 41),) for r in reports)


async def test_the_last_message_tells_what_the_request_cost_and_together_they_cost_the_time_that_passed(
    lane: Lane,
) -> None:
    lane.fault("decode", '{"step_seconds": 0.01}')
    await asyncio.sleep(0.3)
    async with stub(lane.decode) as decode:
        began = time.monotonic()
        cancelled = decode.Decode(decode_request(prefill_request(max_tokens=4_000, workload="chat")), timeout=30)
        await cancelled.read()

        async def one() -> list[float]:
            ask = decode_request(prefill_request(max_tokens=48, workload="chat"))
            return [m.load.engine_seconds async for m in decode.Decode(ask, timeout=30)]

        first = await asyncio.gather(one(), one())
        cancelled.cancel()
        await state_when(decode, lambda s: not s.running_requests)
        busy = time.monotonic() - began
        (last,) = await asyncio.gather(one())
        whole = time.monotonic() - began
    assert all(cost == 0 for costs in (*first, last) for cost in costs[:-1])
    alone = min(costs[-1] for costs in first)
    assert 0 < alone < busy / 2, "three shared the time of the first two"
    assert last[-1] > alone, "the last was told what the cancelled one had cost"
    assert whole / 2 < sum(costs[-1] for costs in (*first, last)) <= whole


async def test_a_one_token_request_is_answered_by_the_prefill_worker_and_holds_nothing(shared: Lane) -> None:
    async with stub(shared.prefill) as prefill:
        done = await prefill.Prefill(prefill_request(max_tokens=1, final=True), timeout=10)
        assert list(done.answer.token_ids) == [expected_token(range(300, 340), 0)]
        assert done.answer.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert not done.kv_handle
        await state_when(prefill, lambda s: s.kv_blocks_used == 0)


BAD = {
    "an empty prompt": (prefill_request([]), "prompt"),
    "a missing prompt": (worker_pb2.PrefillRequest(request_id="r", attempt=1), "prompt"),
    "a token outside the vocabulary": (prefill_request([4_096]), "prompt.token_ids"),
    "a prompt over the limit": (prefill_request([7] * 8_192), "prompt"),
    "max_tokens 0": (prefill_request(max_tokens=0), "sampling.max_tokens"),
    "more max_tokens than the model has room for": (prefill_request(max_tokens=8_192), "sampling.max_tokens"),
    "a request without an id": (worker_pb2.PrefillRequest(prompt={"text": "hi"}), "request_id"),
    "a workload name that is too long": (prefill_request(workload="w" * 33), "workload"),
}


async def test_bad_requests_are_refused_with_the_field_at_fault(shared: Lane) -> None:
    async with stub(shared.prefill) as prefill:
        for name, (ask, field) in BAD.items():
            error = await refusal(prefill.Prefill(ask, timeout=10))
            assert isinstance(error, InvalidRequest), name
            assert error.field == field, name


async def test_the_same_attempt_twice_is_a_duplicate_and_another_attempt_is_not(lane: Lane) -> None:
    lane.fault("decode", '{"step_seconds": 0.05}')
    await asyncio.sleep(0.3)
    async with stub(lane.decode) as decode:
        ask = decode_request(prefill_request(max_tokens=2_000))
        running = decode.Decode(ask, timeout=30)
        await running.read()
        twin = decode.Decode(ask, timeout=10)
        assert isinstance(await refusal(twin.read()), DuplicateRequest)
        ask.attempt = 2
        second = decode.Decode(ask, timeout=10)
        assert (await second.read()).first_token_index == 0
        running.cancel()
        second.cancel()
        await state_when(decode, lambda s: not s.running_requests and s.kv_blocks_used == 0)


async def test_abort_ends_a_running_stream_and_frees_a_held_prompt(lane: Lane) -> None:
    async with stub(lane.prefill) as prefill, stub(lane.decode) as decode:
        ask = prefill_request(max_tokens=4_000)
        done = await prefill.Prefill(ask, timeout=10)
        assert (await state_when(prefill, lambda s: s.kv_blocks_used > 0)).kv_blocks_used == 3
        aborted = await prefill.Abort(worker_pb2.AbortRequest(request_id=ask.request_id), timeout=5)
        assert aborted.found
        await state_when(prefill, lambda s: s.kv_blocks_used == 0)
        late = decode.Decode(decode_request(ask, done), timeout=10)
        assert isinstance(await refusal(late.read()), TransferFailed)

        ask = decode_request(prefill_request(max_tokens=4_000))
        stream = decode.Decode(ask, timeout=30)
        await stream.read()
        assert (await decode.Abort(worker_pb2.AbortRequest(request_id=ask.request_id), timeout=5)).found

        async def to_the_end() -> None:
            while await stream.read():
                pass

        assert isinstance(await refusal(to_the_end()), Cancelled)
        state = await state_when(decode, lambda s: s.kv_blocks_used == 0)
        assert state.kv_transfers_failed == 1
        nobody = await decode.Abort(worker_pb2.AbortRequest(request_id="nobody"), timeout=5)
        assert not nobody.found


async def test_a_client_that_cancels_and_a_deadline_that_passes_free_the_engine(shared: Lane) -> None:
    async with stub(shared.decode) as decode:
        gone = decode.Decode(decode_request(prefill_request(max_tokens=8_000)), timeout=30)
        await gone.read()
        gone.cancel()
        await state_when(decode, lambda s: s.kv_blocks_used == 0)
        late = decode.Decode(decode_request(prefill_request(max_tokens=8_000)), timeout=0.4)

        async def to_the_end() -> None:
            while await late.read():
                pass

        assert isinstance(await refusal(to_the_end()), DeadlineExceeded)
        await state_when(decode, lambda s: s.kv_blocks_used == 0)


async def test_a_held_prompt_is_freed_when_its_lease_ends(shared: Lane) -> None:
    async with stub(shared.prefill) as prefill:
        await prefill.Prefill(prefill_request(), timeout=10)
        await state_when(prefill, lambda s: s.kv_blocks_used > 0)
        await state_when(prefill, lambda s: s.kv_blocks_used == 0, seconds=4)


async def test_a_prefill_killed_before_the_pull_fails_the_transfer_and_nothing_else(lane: Lane) -> None:
    async with stub(lane.prefill) as prefill, stub(lane.decode) as decode:
        ask = prefill_request()
        done = await prefill.Prefill(ask, timeout=10)
        lane.prefill.kill()
        stream = decode.Decode(decode_request(ask, done), timeout=10)
        assert isinstance(await refusal(stream.read()), TransferFailed)
        alone = [m async for m in decode.Decode(decode_request(prefill_request()), timeout=10)]
        assert alone[-1].usage.completion_tokens == 32
        await state_when(decode, lambda s: s.kv_blocks_used == 0)


async def test_a_dead_engine_ends_every_stream_and_the_process(lane: Lane) -> None:
    async with stub(lane.decode) as decode:
        streams = [decode.Decode(decode_request(prefill_request(max_tokens=8_000)), timeout=30) for _ in range(5)]
        for stream in streams:
            await stream.read()
        lane.fault("decode", '{"die": "out of memory"}')

        async def to_the_end(stream: object) -> None:
            while await stream.read():  # type: ignore[attr-defined]
                pass

        for error in await asyncio.gather(*(refusal(to_the_end(stream)) for stream in streams)):
            assert isinstance(error, WorkerLost)
    end = time.monotonic() + 5
    while lane.decode.alive:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert lane.decode.exit_status == 1


async def test_text_and_stop_strings_come_back_whole(shared: Lane) -> None:
    async with stub(shared.decode) as decode:
        ask = decode_request(prefill_request(max_tokens=200, request_id=new_id()))
        whole = "".join([m.text async for m in decode.Decode(ask, timeout=10)])
        stop = whole.split()[20]
        ask.sampling.stop.append(stop)
        ask.request_id = new_id()
        messages = [m async for m in decode.Decode(ask, timeout=10)]
        assert "".join(m.text for m in messages) == whole[: whole.index(stop)]
        assert messages[-1].finish_reason == common_pb2.FINISH_REASON_STOP
