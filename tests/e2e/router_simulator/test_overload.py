"""Twice the capacity: a bounded queue, honest refusals, and deadlines kept for all that were let in."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
from tests.support import calls
from tests.support.calls import Answer, generate_async, request
from tests.support.processes import LocalFleet, default_config

from streamserve.contract.runtime_config import AdmissionConfig, SpeculationConfig

STEP_SECONDS = 0.02
TOKENS = 20
SLOTS = 2
# One lane decodes two requests at once, each 20 steps of 20 ms.
CAPACITY_PER_SECOND = SLOTS / (STEP_SECONDS * TOKENS)
SECONDS = 5.0
DEADLINE = 3.0
MAX_QUEUED = 4


def test_overload(tmp_path: Path) -> None:
    config = default_config("pair-uid-1").model_copy(
        update={
            "speculation": SpeculationConfig(),
            "admission": AdmissionConfig(max_queued_requests=MAX_QUEUED, max_queue_ms=2_000),
        }
    )
    engine = {"max-num-seqs": str(SLOTS), "simulator-step-seconds": str(STEP_SECONDS)}
    with LocalFleet(tmp_path, lanes=1, config=config, worker_arguments=(), engine_arguments=engine) as fleet:
        answers, deepest = asyncio.run(flood(fleet))
    served = [answer for answer, _ in answers if answer.error is None]
    refused = [answer.error for answer, _ in answers if answer.error is not None]
    assert len(served) >= 0.7 * CAPACITY_PER_SECOND * SECONDS
    assert len(refused) >= 0.2 * len(answers)
    for refusal in refused:
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED, refusal
        assert refusal.retry_seconds is not None and refusal.retry_seconds > 0
    assert all(seconds < DEADLINE for answer, seconds in answers if answer.error is None)
    assert all(len(answer.token_ids) == TOKENS for answer in served)
    assert 0 < deepest <= MAX_QUEUED


async def flood(fleet: LocalFleet) -> tuple[list[tuple[Answer, float]], int]:
    deepest = 0
    async with grpc.aio.insecure_channel(fleet.grpc) as channel:

        async def one(n: int) -> tuple[Answer, float]:
            await asyncio.sleep(n / (2 * CAPACITY_PER_SECOND))
            began = time.monotonic()
            message = request(f"prompt {n}", max_tokens=TOKENS, ignore_eos=True)
            answer = await generate_async(channel, message, timeout=DEADLINE)
            return answer, time.monotonic() - began

        async def watch() -> None:
            nonlocal deepest
            while True:
                view = await asyncio.to_thread(calls.get_fleet, fleet.grpc)
                deepest = max(deepest, view.queued_requests)
                await asyncio.sleep(0.05)

        watcher = asyncio.create_task(watch())
        count = int(2 * CAPACITY_PER_SECOND * SECONDS)
        answers = await asyncio.gather(*(one(n) for n in range(count)))
        watcher.cancel()
    return list(answers), deepest
