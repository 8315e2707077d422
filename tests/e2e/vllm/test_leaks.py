"""Requests that end, in whatever way, leave nothing behind."""

from __future__ import annotations

import asyncio
import re
import time
from random import Random

import grpc
import psutil
import pytest
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
# Work that comes and goes by itself may be under way when one looks.
REST_LOOKS = 20
# What an allocator gives and takes from round 3 to 5 in a process that does not grow. Ours stay within 0.3 MiB. An
# engine's heap has 40 to 90 MiB of free pieces at any time (mallinfo2), and moves by 16 MiB in one go while what is in
# use stays: in one run of these rounds 16.3 in one engine of four, 5.2 in the other that computes prompts.
OWN_NOISE_MIB, ENGINE_NOISE_MIB = 3, 20
MIB = 2**20
SHOWN = ("streamserve_process_tasks", "streamserve_router_open_requests", "streamserve_worker_open_requests")
ENGINE = " engine"
PREFILL_0, PREFILL_1 = f"lane-0-prefill-0{ENGINE}", f"lane-1-prefill-0{ENGINE}"


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
        seen[f"{name}{ENGINE}"] = sum(child.memory_info().rss for child in children) / MIB
    return seen


async def test_five_rounds_with_cancelled_requests_leave_no_task_call_block_key_booking_or_memory(
    fleet: RealFleet, reference: Reference
) -> None:
    rng = Random(4)
    limit = asyncio.Semaphore(AT_ONCE)
    rounds: list[dict[str, float]] = []
    async with fleet.client() as client:
        await meet_every_size(client)
        await client.idle(LEASE_SECONDS)
        keys = await asyncio.to_thread(redis_keys, fleet)
        at_rest = await tasks_at_rest(fleet)
        print("tasks at rest:", at_rest)

        async def limited(index: int) -> bool:
            async with limit:
                return await one(client, reference.greedy[index % len(reference.greedy)].prompt, rng)

        for number in range(-1, ROUNDS):
            ended = await asyncio.gather(*map(limited, range(REQUESTS)))
            assert REQUESTS / 2 < sum(ended) < REQUESTS, f"{sum(ended)} of {REQUESTS} were let to their end"
            await client.idle(LEASE_SECONDS)
            await nothing_held(fleet, client)
            await nothing_alive(fleet, at_rest)
            assert await asyncio.to_thread(redis_keys, fleet) == keys
            if number < 0:
                continue
            rounds.append(await asyncio.to_thread(memory, fleet))
            print(f"round {number + 1}:", {name: round(value, 1) for name, value in rounds[-1].items()})
    assert growth(rounds) == []


def growth(rounds: list[dict[str, float]]) -> list[str]:
    """Who has grown, and how. An engine rises when the engines of its role on all lanes do: they do the same work, and
    what one engine's heap does alone is no leak."""
    second, third, fifth = rounds[1], rounds[2], rounds[4]
    roles: dict[str, list[str]] = {}
    for name in second:
        roles.setdefault(re.sub(r"^lane-\d+-", "", name) if name.endswith(ENGINE) else name, []).append(name)
    found = []
    for role, names in roles.items():
        allowed, noise = (ENGINE_MIB, ENGINE_NOISE_MIB) if role.endswith(ENGINE) else (OWN_MIB, OWN_NOISE_MIB)
        seen = ", ".join(f"{name} {[round(row[name], 1) for row in rounds]} MiB" for name in names)
        if any(abs(fifth[name] - second[name]) > allowed for name in names):
            found.append(f"more than {allowed} MiB from round 2: {seen}")
        if min(fifth[name] - third[name] for name in names) > noise:
            found.append(f"rises from round 3 to 5: {seen}")
    return found


GROWTH = {
    "a process that stays": ("router", "router", [77, 77, 77, 77, 77], ""),
    "3 MiB more each round": ("router", "router", [70, 73, 76, 79, 82], "rises"),
    "a leap before round 3": ("router", "router", [70, 77, 88, 88, 88], "more than 10 MiB"),
    "an engine's heap moves once": (PREFILL_0, PREFILL_0, [2343.8, 2343.8, 2343.9, 2360.3, 2360.2], ""),
    "an engine that gains half a hundred": (PREFILL_0, PREFILL_0, [2300, 2300, 2340, 2350, 2350], "more than 48 MiB"),
    "both lanes' engines gain 12 MiB each round": (PREFILL_0, PREFILL_1, [2300, 2312, 2324, 2336, 2348], "rises"),
}


@pytest.mark.parametrize(("first", "second", "mib", "told"), GROWTH.values(), ids=GROWTH.keys())
def test_what_counts_as_growth(first: str, second: str, mib: list[float], told: str) -> None:
    still = {"router": 77.0, PREFILL_0: 2343.8, PREFILL_1: 2321.4}
    found = growth([still | {first: each, second: each} for each in mib])
    assert [told in sentence for sentence in found] == [True] * bool(told)


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


def alive(fleet: RealFleet) -> tuple[dict[str, int], dict[str, int]]:
    """The asyncio tasks and the open calls of router and workers; a call that a gRPC server is at is a task, too."""
    tasks, calls = {}, {}
    for name in ("router", *fleet.worker_files()):
        page = {sample.name: int(sample.value) for sample in fleet.metrics(name) if sample.name.startswith(SHOWN)}
        tasks[name] = page["streamserve_process_tasks"]
        calls[name] = page[f"streamserve_{'router' if name == 'router' else 'worker'}_open_requests"]
    return tasks, calls


async def tasks_at_rest(fleet: RealFleet) -> dict[str, int]:
    looks = [(await asyncio.to_thread(alive, fleet))[0] for _ in range(REST_LOOKS)]
    return {name: min(look[name] for look in looks) for name in looks[0]}


async def nothing_alive(fleet: RealFleet, at_rest: dict[str, int]) -> None:
    """No call is open, and no process has more tasks than at rest."""
    end = time.monotonic() + SIGNALS_SECONDS
    while True:
        tasks, calls = await asyncio.to_thread(alive, fleet)
        if not any(calls.values()) and all(tasks[name] <= at_rest[name] for name in at_rest):
            return
        assert time.monotonic() < end, f"tasks {tasks}, at rest {at_rest}, open calls {calls}"
        await asyncio.sleep(0.1)


def redis_keys(fleet: RealFleet) -> set[bytes]:
    with fleet.redis() as connection:
        return set(connection.scan_iter())
