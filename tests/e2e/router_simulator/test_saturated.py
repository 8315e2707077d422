"""A full engine makes a request wait for a whole answer of those before it: that is no stall, and nobody pays for it.

A router sends a little more than an engine runs at once (filters.py). Here all that run end together, far later than
the lengths known so far let expect, and several times later than `--stall-seconds`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.support import calls
from tests.support.calls import Answer, generate_async, request
from tests.support.processes import LocalFleet, default_config

from streamserve.contract.runtime_config import SpeculationConfig

SLOTS, AHEAD = 16, 2
STEP_SECONDS, TOKENS = 0.04, 200
STALL_SECONDS = 1.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[LocalFleet]:
    config = default_config("pair-uid-1").model_copy(update={"speculation": SpeculationConfig()})
    engine = {"max-num-seqs": str(SLOTS), "simulator-step-seconds": str(STEP_SECONDS)}
    with LocalFleet(
        tmp_path,
        lanes=1,
        config=config,
        worker_arguments=(),
        engine_arguments=engine,
        router_arguments=("--stall-seconds", str(STALL_SECONDS)),
    ) as running:
        yield running


async def ask(fleet: LocalFleet, count: int, answers: list[Answer], *, seconds: float = 60.0) -> list[float]:
    """Returns how long each took."""
    async with grpc.aio.insecure_channel(fleet.grpc) as channel:

        async def one(n: int) -> float:
            answers.append(answer := Answer())
            message = request(f"prompt {n}", max_tokens=TOKENS, min_tokens=TOKENS)
            began = time.monotonic()
            await generate_async(channel, message, timeout=seconds, answer=answer)
            return time.monotonic() - began

        return await asyncio.gather(*(one(n) for n in range(count)))


def health(fleet: LocalFleet) -> set[str]:
    return {worker.health for lane in calls.get_fleet(fleet.grpc).lanes for worker in lane.workers}


def test_who_waits_in_a_full_engine_is_answered_and_its_worker_is_blamed_for_nothing(fleet: LocalFleet) -> None:
    answers: list[Answer] = []
    took = asyncio.run(ask(fleet, SLOTS + AHEAD, answers))
    assert [answer.error for answer in answers] == [None] * (SLOTS + AHEAD)
    assert {len(answer.token_ids) for answer in answers} == {TOKENS}
    assert {answer.chunks[0].attempt for answer in answers} == {1}
    assert max(took) > 2 * STEP_SECONDS * TOKENS > 4 * STALL_SECONDS, "nobody had to wait for a whole answer"
    assert health(fleet) == {"ok"}
    assert "stalled" not in (fleet.directory / "router.log").read_text()


def test_a_full_worker_that_freezes_is_given_up_all_the_same(fleet: LocalFleet) -> None:
    answers: list[Answer] = []

    async def freeze() -> None:
        asking = asyncio.create_task(ask(fleet, SLOTS + AHEAD, answers))
        await asyncio.sleep(2 * STALL_SECONDS)
        assert health(fleet) == {"ok"}
        fleet["lane-0-decode-0"].freeze()
        began = time.monotonic()
        await asking
        assert time.monotonic() - began < 15.0

    asyncio.run(freeze())
    reasons = {answer.error.reason if answer.error is not None else "" for answer in answers}
    assert reasons <= {"STREAM_LOST", "WORKER_STALLED", "NO_WORKER"}
