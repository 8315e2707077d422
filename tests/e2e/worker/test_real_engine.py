"""A prefill and a decode worker with vLLM: same text, KV as counted, depth within its bounds, blocks given back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc
import pytest
from real_lane import LANE_DRAFT, MAX_DEPTH, RealLane, Stub, decode_request, prefill_request
from tiny_pair import TARGET, kv_bytes, prompts

from streamserve.contract.errors import Cancelled, InvalidRequest
from streamserve.runtime.status import from_rpc_error
from streamserve.v1 import common_pb2, worker_pb2

TOKENS = 64
State = worker_pb2.GetStateResponse


async def until(stub: Stub, condition: Callable[[State], bool], seconds: float = 10.0) -> State:
    end = time.monotonic() + seconds
    while True:
        state = await stub.GetState(worker_pb2.GetStateRequest(), timeout=5)
        if condition(state):
            return state
        assert time.monotonic() < end, f"never so within {seconds:g} s: {state}"
        await asyncio.sleep(0.05)


async def adopt(lane: RealLane, prefill: Stub, decode: Stub, **speculation: object) -> None:
    generation = lane.configure(**speculation)
    for stub in (prefill, decode):
        await until(stub, lambda state: state.config_generation == generation)


async def answer(decode: Stub, request: worker_pb2.DecodeRequest) -> tuple[list[int], common_pb2.Usage]:
    got: list[int] = []
    usage = common_pb2.Usage()
    async for message in decode.Decode(request, timeout=60):
        assert message.first_token_index == len(got) or not message.token_ids
        got.extend(message.token_ids)
        if message.HasField("usage"):
            usage = message.usage
    return got, usage


async def test_pulled_and_speculated_text_is_that_of_the_engine_alone_and_the_bytes_are_the_formulas(
    real_lane: RealLane,
) -> None:
    async with real_lane.stubs() as (prefill, decode):
        texts = [prompt for _, prompt in prompts(2)]
        await adopt(real_lane, prefill, decode, policy="Off")
        alone = [await answer(decode, decode_request(prefill_request(text, max_tokens=TOKENS))) for text in texts]
        await adopt(real_lane, prefill, decode, min_depth=1, max_depth=MAX_DEPTH)
        before = await until(decode, lambda state: not state.running_requests)
        pulled = []
        for text in texts:
            ask = prefill_request(text, max_tokens=TOKENS)
            done = await prefill.Prefill(ask, timeout=60)
            pulled.append(await answer(decode, decode_request(ask, done)))
        differing = [text for text, a, b in zip(texts, alone, pulled, strict=True) if a[0] != b[0]]
        assert len(differing) <= 1, "a near tie may turn, nothing else"
        block = before.kv.block_tokens
        for _, usage in alone:
            assert (usage.kv_transfer_bytes, usage.drafted_tokens, usage.depths_seen_mask) == (0, 0, 1)
        for _, usage in pulled:
            assert usage.kv_transfer_bytes == kv_bytes(usage.prompt_tokens, block, (TARGET, LANE_DRAFT))
            assert usage.drafted_tokens >= usage.accepted_tokens > 0
        moved = sum(usage.kv_transfer_bytes for _, usage in pulled)
        after = await until(decode, lambda state: state.kv_bytes_received >= before.kv_bytes_received + moved)
        assert after.kv_bytes_received - before.kv_bytes_received == moved
        assert after.kv_bytes_expected - before.kv_bytes_expected == moved
        assert after.kv_transfers_received - before.kv_transfers_received == len(texts)
        for stub in (prefill, decode):
            await until(stub, lambda state: state.kv_blocks_used == 0)


BOUNDS = {
    "one depth": ({"min_depth": 3, "max_depth": 3}, {3}),
    "a window": ({"min_depth": 2, "max_depth": 4}, {2, 3, 4}),
    "a fixed depth": ({"policy": "Fixed", "max_depth": MAX_DEPTH, "fixed_depth": 5}, {5}),
    "nothing": ({"policy": "Goodput", "min_depth": 0, "max_depth": 0}, {0}),
}


@pytest.mark.parametrize("name", BOUNDS)
async def test_every_step_is_within_the_bounds_adopted_before_it(name: str, real_lane: RealLane) -> None:
    speculation, allowed = BOUNDS[name]
    async with real_lane.stubs() as (prefill, decode):
        await adopt(real_lane, prefill, decode, **speculation)
        before = (await until(decode, lambda state: not state.running_requests)).depth_histogram
        ask = prefill_request("def fibonacci(n):\n", max_tokens=TOKENS)
        done = await prefill.Prefill(ask, timeout=60)
        got, _ = await answer(decode, decode_request(ask, done))
        assert len(got) == TOKENS
        after = (await until(decode, lambda state: not state.running_requests)).depth_histogram
        used = {depth for depth, (a, b) in enumerate(zip(before, after, strict=True)) if b > a}
        assert used and used <= allowed


async def test_bounds_change_while_tokens_stream(real_lane: RealLane) -> None:
    async with real_lane.stubs() as (prefill, decode):
        await adopt(real_lane, prefill, decode, min_depth=2, max_depth=2)
        request = decode_request(prefill_request("Question: How many?\nAnswer:", max_tokens=900))
        running = asyncio.create_task(answer(decode, request))
        await until(decode, lambda state: state.running_requests == 1)
        await adopt(real_lane, prefill, decode, min_depth=0, max_depth=0)
        got, usage = await running
        assert len(got) == 900
        assert usage.depths_seen_mask == 0b101, "depths 2, then 0, within one request"


async def test_a_depth_that_the_engine_was_not_built_for_is_refused_and_the_last_good_one_stays(
    real_lane: RealLane,
) -> None:
    async with real_lane.stubs() as (prefill, decode):
        await adopt(real_lane, prefill, decode, min_depth=1, max_depth=MAX_DEPTH)
        good = real_lane.generation
        real_lane.configure(min_depth=1, max_depth=MAX_DEPTH + 1)
        state = await until(decode, lambda state: bool(state.config_error))
        assert state.config_generation == good
        assert f"depth {MAX_DEPTH + 1}" in state.config_error
        await adopt(real_lane, prefill, decode, min_depth=1, max_depth=MAX_DEPTH)


async def test_abort_frees_the_blocks_of_a_running_request_and_of_a_prompt_that_nobody_pulls(
    real_lane: RealLane,
) -> None:
    async with real_lane.stubs() as (prefill, decode):
        ask = prefill_request(range(300, 600), max_tokens=600)
        await prefill.Prefill(ask, timeout=60)
        await until(prefill, lambda state: state.kv_blocks_used > 0)
        assert (await prefill.Abort(worker_pb2.AbortRequest(request_id=ask.request_id), timeout=10)).found
        await until(prefill, lambda state: state.kv_blocks_used == 0, seconds=35)

        running = decode_request(prefill_request(range(300, 600), max_tokens=600))
        task = asyncio.create_task(answer(decode, running))
        await until(decode, lambda state: state.running_requests == 1)
        assert (await decode.Abort(worker_pb2.AbortRequest(request_id=running.request_id), timeout=10)).found
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await task
        assert isinstance(from_rpc_error(ended.value), Cancelled)
        await until(decode, lambda state: state.kv_blocks_used == 0 and not state.running_requests)


async def test_a_client_that_goes_away_frees_the_engine(real_lane: RealLane) -> None:
    async with real_lane.stubs() as (_, decode):
        call = decode.Decode(decode_request(prefill_request("Once upon a time", max_tokens=900)), timeout=60)
        await call.read()
        call.cancel()
        await until(decode, lambda state: state.kv_blocks_used == 0 and not state.running_requests)


async def test_what_vllm_cannot_do_is_refused_with_the_field(real_lane: RealLane) -> None:
    async with real_lane.stubs() as (prefill, decode):
        for ask, field in (
            (prefill_request([4_096]), "prompt.token_ids"),
            (prefill_request([300] * 1_024), "prompt"),
            (prefill_request("x", max_tokens=1_024), "sampling.max_tokens"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await prefill.Prefill(ask, timeout=30)
            error = from_rpc_error(refused.value)
            assert isinstance(error, InvalidRequest)
            assert error.field == field
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await answer(decode, decode_request(prefill_request("x", min_p=0.1)))
        assert getattr(from_rpc_error(refused.value), "field", None) == "sampling.min_p"
