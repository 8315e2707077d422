"""Workers that die or freeze under load: nothing hangs, the other lane goes on, and the dead come back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from tests.support.calls import Answer, generate, generate_async, request
from tests.support.processes import LocalFleet, wait_until

STREAMS = 16
TOKENS = 300
DEADLINE = 30.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with LocalFleet(
        tmp_path_factory.mktemp("death"),
        router_arguments=("--stall-seconds", "1"),
        engine_arguments={"simulator-step-seconds": "0.01"},
    ) as running:
        yield running


async def _under_load(
    fleet: LocalFleet, strike: Callable[[], None], *, streaming: bool = True, answers: list[Answer] | None = None
) -> list[Answer]:
    """All streams at once; `strike` falls when every one of them has its first token, or at once."""
    answers = answers if answers is not None else [Answer() for _ in range(STREAMS)]
    async with grpc.aio.insecure_channel(fleet.grpc) as channel, asyncio.TaskGroup() as group:
        for n, answer in enumerate(answers):
            message = request(f"prompt {n}", max_tokens=TOKENS, ignore_eos=True)
            group.create_task(generate_async(channel, message, timeout=DEADLINE, answer=answer))
        if streaming:
            await asyncio.to_thread(
                wait_until,
                lambda: all(answer.chunks or answer.error for answer in answers),
                seconds=DEADLINE,
                what="every stream has begun",
                every_seconds=0.005,
            )
        else:
            await asyncio.sleep(0)
        strike()
    return answers


def _lost(answers: list[Answer], victim: str) -> list[Answer]:
    """Those that failed, after a check that they had to: they ran on the victim, and the client is told what to do."""
    lost = [answer for answer in answers if answer.error is not None]
    for answer in lost:
        assert answer.error is not None
        assert answer.route.decode_worker == victim
        assert (answer.error.code, answer.error.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_LOST")
        assert answer.error.retry_seconds is not None
    assert all(len(answer.token_ids) == TOKENS for answer in answers if answer.error is None)
    return lost


def _busy(answers: list[Answer]) -> str:
    """A decode worker that serves: which, is the router's to say."""
    return str(answers[0].route.decode_worker)


def _other(victim: str) -> str:
    return victim.replace("lane-0", "lane-1") if "lane-0" in victim else victim.replace("lane-1", "lane-0")


def _serves_on_the_other_lane(fleet: LocalFleet, other: str = "lane-1-decode-0") -> None:
    after = [generate(fleet.grpc, request(f"after {n}", max_tokens=4, ignore_eos=True)) for n in range(6)]
    assert [answer.error for answer in after] == [None] * 6
    assert {answer.route.decode_worker for answer in after} == {other}


def test_a_killed_decode_worker_takes_only_its_own_streams_with_it(fleet: LocalFleet) -> None:
    began = time.monotonic()
    answers = [Answer() for _ in range(STREAMS)]

    def kill() -> None:
        fleet[_busy(answers)].kill()

    asyncio.run(_under_load(fleet, kill, answers=answers))
    assert time.monotonic() - began < DEADLINE
    victim = _busy(answers)
    assert len(_lost(answers, victim)) == sum(answer.route.decode_worker == victim for answer in answers) > 0
    _serves_on_the_other_lane(fleet, _other(victim))
    fleet.restart(victim)
    fleet.wait_lanes_ready()


def test_streams_outlive_their_prefill_worker(fleet: LocalFleet) -> None:
    victim = "lane-0-prefill-0"
    answers = asyncio.run(_under_load(fleet, fleet[victim].kill))
    assert _lost(answers, victim) == []
    _serves_on_the_other_lane(fleet)
    fleet.restart(victim)
    fleet.wait_lanes_ready()


def test_a_worker_killed_before_the_first_token_costs_a_retry_only(fleet: LocalFleet) -> None:
    answers = asyncio.run(_under_load(fleet, fleet["lane-0-prefill-0"].kill, streaming=False))
    assert [answer.error for answer in answers] == [None] * STREAMS
    fleet.restart("lane-0-prefill-0")
    fleet.wait_lanes_ready()


def test_a_frozen_worker_is_found_by_its_silence(fleet: LocalFleet) -> None:
    answers = [Answer() for _ in range(STREAMS)]
    began = time.monotonic()

    def freeze() -> None:
        fleet[_busy(answers)].freeze()

    try:
        asyncio.run(_under_load(fleet, freeze, answers=answers))
        assert time.monotonic() - began < DEADLINE / 2
        frozen = _busy(answers)
        assert len(_lost(answers, frozen)) == sum(answer.route.decode_worker == frozen for answer in answers) > 0
        _serves_on_the_other_lane(fleet, _other(frozen))
    finally:
        fleet[_busy(answers)].thaw()
    fleet.wait_lanes_ready()


def test_the_router_stops_cleanly_and_lets_running_streams_end(fleet: LocalFleet) -> None:
    answers = asyncio.run(_under_load(fleet, lambda: fleet.router.signal(signal.SIGTERM)))
    assert [answer.error for answer in answers] == [None] * STREAMS
    wait_until(lambda: not fleet.router.alive, seconds=10, what="the router ended")
    assert fleet.router.exit_status == 0
    fleet.restart("router")
    fleet.wait_lanes_ready()
    assert generate(fleet.grpc, request(max_tokens=2)).error is None
