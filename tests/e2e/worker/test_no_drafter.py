"""A real engine without a drafter, in a fleet that is told to speculate: its lane waits to be replaced."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from real_lane import MAX_DEPTH, START_SECONDS, RealLane, Stub, decode_request, prefill_request

from streamserve.runtime import grpc as runtime_grpc
from streamserve.v1 import worker_pb2

TOKENS = 32


async def test_an_engine_without_a_drafter_takes_any_bounds_and_drafts_nothing(tmp_path: Path) -> None:
    lane = RealLane(tmp_path)
    lane.configure(policy="Off")
    worker = lane.worker("decode", drafts=False)
    try:
        worker.start()
        worker.wait_ready(START_SECONDS)
        generation = lane.configure(policy="Goodput", min_depth=1, max_depth=MAX_DEPTH)
        async with runtime_grpc.channel(worker.ready["grpc"]) as channel:
            stub, end = Stub(channel), time.monotonic() + 10
            while (
                state := await stub.GetState(worker_pb2.GetStateRequest(), timeout=5)
            ).config_generation != generation:
                assert time.monotonic() < end, state
                await asyncio.sleep(0.05)
            request = decode_request(prefill_request("def fibonacci(n):\n", max_tokens=TOKENS))
            messages = [message async for message in stub.Decode(request, timeout=60)]
        assert sum(len(message.token_ids) for message in messages) == TOKENS
        usage = messages[-1].usage
        assert (usage.drafted_tokens, usage.depths_seen_mask) == (0, 1)
    finally:
        worker.terminate()
        worker.kill()
