"""What stands in Redis is what vLLM itself counts."""

from __future__ import annotations

import asyncio
import time

from real_fleet import RealFleet

WORKER = "lane-1-decode-0"
REQUESTS, RUNNING = 22, 16
SIGNAL_SECONDS = 0.7


def counters(fleet: RealFleet, worker: str) -> dict[str, float]:
    """vLLM's Prometheus samples of one engine, by name."""
    return {sample.name: sample.value for sample in fleet.metrics(worker) if sample.name.startswith("vllm:")}


def queue(values: dict[str, float]) -> tuple[int, int]:
    return int(values["vllm:num_requests_running"]), int(values["vllm:num_requests_waiting"])


async def test_queue_depth_and_acceptance_in_redis_are_vllms_own(fleet: RealFleet) -> None:
    """More requests than the engine runs at once, behind the router's back, so that some wait in vLLM's own queue."""
    async with fleet.client() as client:
        load = [asyncio.create_task(client.decode_alone(WORKER, number, max_tokens=400)) for number in range(REQUESTS)]
        agreed: set[tuple[int, int]] = set()
        end = time.monotonic() + 60
        while not all(task.done() for task in load):
            assert time.monotonic() < end
            before = queue(await asyncio.to_thread(counters, fleet, WORKER))
            await asyncio.sleep(SIGNAL_SECONDS)
            seen = fleet.signals().get(WORKER)
            after = queue(await asyncio.to_thread(counters, fleet, WORKER))
            if before == after and seen is not None:
                assert (seen.running_requests, seen.waiting_requests) == before
                agreed.add(before)
        await asyncio.gather(*load)
        await client.idle(40)
    assert (RUNNING, REQUESTS - RUNNING) in agreed, f"compared at {agreed}"
    await asyncio.sleep(SIGNAL_SECONDS)
    for name, seen in fleet.signals().items():
        own = counters(fleet, name)
        drafted = own.get("vllm:spec_decode_num_draft_tokens_total", 0)
        accepted = own.get("vllm:spec_decode_num_accepted_tokens_total", 0)
        assert (seen.drafted_tokens, seen.accepted_tokens) == (drafted, accepted), name
        assert (seen.running_requests, seen.waiting_requests) == queue(own) == (0, 0), name
        if name == WORKER:
            assert drafted > accepted > 0
