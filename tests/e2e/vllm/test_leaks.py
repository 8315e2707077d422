"""Requests that end, in whatever way, leave nothing behind."""

from __future__ import annotations

import asyncio
import time
from random import Random

import grpc
import psutil
from plain_reference import Reference
from real_fleet import Client, RealFleet

from streamserve.contract import tokens
from streamserve.v1 import common_pb2, inference_pb2

ROUNDS, REQUESTS, AT_ONCE = 5, 100, 16
LONG_TOKENS, SIZES = 1_900, 200
LEASE_SECONDS = 35.0
# The engine is asked first; what it publishes follows.
SIGNALS_SECONDS = 3.0
OWN_MIB, ENGINE_MIB = 10, 48
# What an allocator gives and takes between two readings of a process that does not grow. An engine's heap has 40 to 90
# MiB of free pieces at any time (mallinfo2), and moves by up to 16 MiB while what is in use stays.
OWN_NOISE_MIB, ENGINE_NOISE_MIB = 3, 12
MIB = 2**20


async def one(client: Client, prompt: str, rng: Random) -> bool:
    """True when it was let to its end; a third is cancelled somewhere between queue, prefill, transfer and decode."""
    request = inference_pb2.GenerateRequest(
        prompt=common_pb2.Prompt(text=prompt),
        sampling=common_pb2.SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True),
    )
    call = client.inference.Generate(request, timeout=60)
    cancelled_after = rng.uniform(0.0, 0.8) if rng.random() < 1 / 3 else None
    count = 0

    async def read() -> None:
        nonlocal count
        async for chunk in call:
            count += len(chunk.token_ids)

    reading = asyncio.create_task(read())
    if cancelled_after is not None:
        await asyncio.wait([reading], timeout=cancelled_after)
        call.cancel()
    try:
        await reading
    except (asyncio.CancelledError, grpc.aio.AioRpcError):
        assert cancelled_after is not None, "a request failed that nobody had cancelled"
        return False
    assert count == 32
    return True


def memory(fleet: RealFleet) -> dict[str, float]:
    """MiB by process: ours by name, an engine's two processes as one."""
    own = {"up": fleet.family()[0], "router": fleet.router_process(), "redis": fleet.redis_process()}
    seen = {name: process.memory_info().rss / MIB for name, process in own.items()}
    for name, process in fleet.workers():
        seen[name] = process.memory_info().rss / MIB
        children: list[psutil.Process] = process.children(recursive=True)
        seen[f"{name} engine"] = sum(child.memory_info().rss for child in children) / MIB
    return seen


async def test_five_rounds_with_cancelled_requests_leave_no_block_key_booking_or_memory(
    fleet: RealFleet, reference: Reference
) -> None:
    rng = Random(4)
    limit = asyncio.Semaphore(AT_ONCE)
    rounds: list[dict[str, float]] = []
    async with fleet.client() as client:
        await meet_every_size(client)
        await client.idle(LEASE_SECONDS)
        keys = await asyncio.to_thread(redis_keys, fleet)

        async def limited(index: int) -> bool:
            async with limit:
                return await one(client, reference.greedy[index % len(reference.greedy)].prompt, rng)

        for number in range(-1, ROUNDS):
            ended = await asyncio.gather(*map(limited, range(REQUESTS)))
            assert REQUESTS / 2 < sum(ended) < REQUESTS, f"{sum(ended)} of {REQUESTS} were let to their end"
            await client.idle(LEASE_SECONDS)
            await nothing_held(fleet, client)
            assert await asyncio.to_thread(redis_keys, fleet) == keys
            if number < 0:
                continue
            rounds.append(await asyncio.to_thread(memory, fleet))
            print(f"round {number + 1}:", {name: round(value) for name, value in rounds[-1].items()})
    second, fifth = rounds[1], rounds[4]
    for name in second:
        allowed, noise = (ENGINE_MIB, ENGINE_NOISE_MIB) if name.endswith("engine") else (OWN_MIB, OWN_NOISE_MIB)
        assert abs(fifth[name] - second[name]) <= allowed, f"{name}: {[round(r[name], 1) for r in rounds]} MiB"
        steps = [rounds[i + 1][name] - rounds[i][name] for i in (2, 3)]
        assert min(steps) <= noise, f"{name} rises: {[round(r[name], 1) for r in rounds]} MiB"


async def meet_every_size(client: Client) -> None:
    """Prompts of many lengths, on both lanes, that need more blocks than there are.

    Afterwards the KV cache lies in memory as a whole, and so do the matrix products that vLLM compiles and keeps for
    the last 32 counts of tokens that each layer has met (`create_onednn_mm` in vllm/model_executor/layers/utils.py).
    Both grow with the work done, up to a bound, and would look like a leak.
    """
    sampling = common_pb2.SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    limit = asyncio.Semaphore(AT_ONCE)

    async def one_of(length: int) -> None:
        prompt = common_pb2.Prompt(token_ids={"ids_le32": tokens.pack(range(300, 300 + length))})
        request = inference_pb2.GenerateRequest(prompt=prompt, sampling=sampling)
        async with limit:
            async for _ in client.inference.Generate(request, timeout=120):
                pass

    await asyncio.gather(*(one_of(length) for length in range(LONG_TOKENS, 0, -(LONG_TOKENS // SIZES))))


async def nothing_held(fleet: RealFleet, client: Client) -> None:
    seen = await client.fleet()
    assert (seen.queued_requests, seen.running_requests) == (0, 0)
    booked = {w.worker.id: (w.booked_requests, w.booked_tokens) for lane in seen.lanes for w in lane.workers}
    assert not any(map(any, booked.values())), booked
    end = time.monotonic() + SIGNALS_SECONDS
    while held := {
        name: (state.running_requests, state.waiting_requests, state.kv_blocks_used)
        for name, state in fleet.signals().items()
        if state.running_requests or state.waiting_requests or state.kv_blocks_used
    }:
        assert time.monotonic() < end, f"(running, waiting, blocks) in the signals: {held}"
        await asyncio.sleep(0.1)


def redis_keys(fleet: RealFleet) -> set[bytes]:
    with fleet.redis() as connection:
        return set(connection.scan_iter())
