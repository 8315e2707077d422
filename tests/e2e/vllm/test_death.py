"""`kill -9` of every kind of process under load: each request ends, the other lane goes on, all is whole again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import pytest
from plain_reference import Reference
from processes import command_line, wait_until
from real_fleet import Answer, Fleets, RealFleet

from streamserve.contract.errors import Retryable

AT_ONCE = 6
LANES = {"lane-0", "lane-1"}
TOKENS = 96
DEADLINE_SECONDS = 40.0
# Behind the deadline, for the status to come back on a machine that is loading engines.
GRACE_SECONDS = 3.0
WARM_SECONDS = 2.0
WHOLE_FACTOR = 2.5
GONE_SECONDS = 5.0


@dataclass
class Load:
    """Greedy requests, AT_ONCE at a time, each judged as it ends."""

    fleet: RealFleet
    reference: Reference
    answers: list[tuple[float, Answer, tuple[int, ...]]] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with self.fleet.client() as client:

            async def keep_asking(number: int) -> None:
                while not self.stop.is_set():
                    row = self.reference.greedy[number % len(self.reference.greedy)]
                    number += AT_ONCE
                    answer = await client.generate(row.prompt, max_tokens=TOKENS, seconds=DEADLINE_SECONDS)
                    self.answers.append((time.monotonic(), answer, row.token_ids[:TOKENS]))
                    if answer.error is not None:
                        # What a client does that was told to try again.
                        await asyncio.sleep(answer.error.retry_after_seconds or 0.3)

            await asyncio.gather(*map(keep_asking, range(AT_ONCE)))

    def check(self) -> None:
        turned = set()
        for _, answer, expected in self.answers:
            assert answer.seconds < DEADLINE_SECONDS + GRACE_SECONDS, "a request outlived its deadline"
            if answer.error is not None:
                assert isinstance(answer.error, Retryable), repr(answer.error)
                assert answer.error.message
            elif tuple(answer.token_ids) != expected:
                turned.add(expected)
        assert len(turned) <= 1, f"{len(turned)} prompts were answered with another text"

    def told(self) -> str:
        errors = Counter(type(a.error).__name__ for _, a, _ in self.answers if a.error is not None)
        again = sum(a.attempt > 1 for _, a, _ in self.answers)
        return f"{len(self.answers)} requests, {again} of them tried again, errors {dict(errors)}"

    def served(self, lane: str, since: float, until: float) -> int:
        return sum(a.error is None and a.route.lane == lane and since < at < until for at, a, _ in self.answers)


Victim = Callable[[RealFleet], psutil.Process]
# (what dies, which process, the lanes that go on meanwhile: each of them has to answer)
DEATHS: dict[str, tuple[Victim, tuple[str, ...]]] = {
    "the router": (lambda fleet: fleet.router_process(), ()),
    "Redis": (lambda fleet: fleet.redis_process(), ("lane-0", "lane-1")),
    "a prefill worker": (lambda fleet: fleet.worker("lane-0-prefill-0"), ("lane-1",)),
    "a decode worker": (lambda fleet: fleet.worker("lane-1-decode-0"), ("lane-0",)),
    "the engine core of a decode worker": (lambda fleet: fleet.engine_core("lane-0-decode-0"), ("lane-1",)),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", DEATHS)
async def test_after_the_death_of(what: str, fleet: RealFleet, reference: Reference) -> None:
    find, going_on = DEATHS[what]
    allowed = WHOLE_FACTOR * fleet.start_seconds
    shape = shape_of(fleet)
    load = Load(fleet, reference)
    asking = asyncio.create_task(load.run())
    try:
        await asyncio.sleep(WARM_SECONDS)
        victim = find(fleet)
        doomed = {victim, *victim.children(recursive=True)}
        killed_at = time.monotonic()
        victim.kill()
        await asyncio.to_thread(psutil.wait_procs, list(doomed), 10)
        await whole_again(fleet, shape, doomed, killed_at + allowed)
        whole_at = time.monotonic()
        meanwhile = max(whole_at, killed_at + 2 * WARM_SECONDS)
        await asyncio.sleep(WARM_SECONDS)
        if set(going_on) == LANES:
            # It is whole again before an answer has had its time: what goes on shows a little later.
            meanwhile = await until_each_answered(load, going_on, killed_at)
    finally:
        load.stop.set()
        await asyncio.wait_for(asking, DEADLINE_SECONDS + 10)
    print(
        f"{what}: whole after {whole_at - killed_at:.1f} s (start-up took {fleet.start_seconds:.1f} s); {load.told()}"
    )
    load.check()
    for lane in going_on:
        assert load.served(lane, killed_at, meanwhile), f"{lane} did not go on"
    assert load.served("lane-0", whole_at, float("inf")) + load.served("lane-1", whole_at, float("inf")), (
        "nothing after"
    )
    async with fleet.client() as client:
        await client.idle(40)


async def test_kill_9_of_up_under_load_leaves_no_process_after_five_seconds_and_its_ports_free(
    fleet: RealFleet, fleets: Fleets, reference: Reference
) -> None:
    """The last test of the shared fleet: nothing of it is left."""
    family = fleet.family()
    titles = [" ".join(command_line(process)) for process in family]
    for title in ("VLLM::EngineCore", "VLLM::Worker"):
        assert sum(title in each for each in titles) == 2 * len(LANES), titles
    load = Load(fleet, reference)
    asking = asyncio.create_task(load.run())
    try:
        await asyncio.to_thread(wait_until, lambda: computing(fleet), seconds=DEADLINE_SECONDS, what="requests run")
        family[0].kill()
        killed_at = time.monotonic()
        await asyncio.to_thread(
            wait_until,
            lambda: not alive(family),
            seconds=GONE_SECONDS,
            what="every process is gone",
            explain=lambda: f"left are {alive(family)}",
        )
        print(f"{len(family)} processes gone {time.monotonic() - killed_at:.1f} s after kill -9 of up")
        for name in ("grpc", "http", "redis"):
            host, _, port = fleet.ready[name].rpartition(":")
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((host, int(port)))
                server.listen()
    finally:
        asking.cancel()
        await asyncio.wait([asking])
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(fleet.ready["run_dir"], ignore_errors=True)
        fleets.close()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run: a zombie only waits until somebody has read its status."""
    left = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left


def computing(fleet: RealFleet) -> bool:
    """Every decode engine is at a request."""
    seen = fleet.signals()
    names = [f"{lane}-decode-0" for lane in LANES]
    return all(name in seen and seen[name].running_requests for name in names)


async def until_each_answered(load: Load, lanes: tuple[str, ...], since: float) -> float:
    """When each of these lanes has answered; or when a request that was sent at once has had its time."""
    while time.monotonic() - since < DEADLINE_SECONDS:
        if all(load.served(lane, since, float("inf")) for lane in lanes):
            break
        await asyncio.sleep(0.25)
    return time.monotonic()


def shape_of(fleet: RealFleet) -> Counter[str]:
    """How many processes of which kind."""
    return Counter(kind_of(process) for process in fleet.family())


def kind_of(process: psutil.Process) -> str:
    command = command_line(process)
    if "-m" in command:
        return command[command.index("-m") + 1]
    return command[0].split(" ")[0] if command else "gone"


async def whole_again(fleet: RealFleet, shape: Counter[str], doomed: set[psutil.Process], end: float) -> None:
    """The same processes as before, none of the old ones, every lane ready, and the router sees it so."""
    while True:
        now, wanted = shape_of(fleet), shape
        orphans = alive(list(doomed))
        ready = fleet.lanes_ready() and await routed(fleet)
        if now == wanted and not orphans and ready:
            return
        assert time.monotonic() < end, (
            f"not whole in time: lanes ready {ready}, processes {now - wanted} too many, {wanted - now} missing, "
            f"left of the dead {orphans}\n{fleet.log[-2000:]}"
        )
        await asyncio.sleep(0.25)


async def routed(fleet: RealFleet) -> bool:
    try:
        async with fleet.client() as client:
            seen = await client.fleet()
    except Exception:
        return False
    states = [lane.state for lane in seen.lanes]
    return len(states) == 2 and all(state == 3 for state in states) and seen.redis_connected
