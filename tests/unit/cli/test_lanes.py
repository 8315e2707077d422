"""Lanes whose workers come and go: every process that was started is known until it was stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from streamserve.cli.fleet_view import READY, Fleet, LaneRow
from streamserve.cli.up import drain
from streamserve.cli.up.commands import Command, Site
from streamserve.cli.up.lanes import Lanes
from streamserve.cli.up.supervisor import Child
from streamserve.contract.lanes import Reason, RetireLane, RetireWorker, Slot, StartLane, StartWorker, Wanted, plan
from streamserve.contract.streampair import StreamPair
from streamserve.runtime.tasks import Tasks

SECOND = Slot("decode", 1)
DRAIN_SECONDS = 5.0
MakePair = Callable[..., StreamPair]


@dataclass
class FakeChild:
    """Up as soon as it was started, gone as soon as it is told to stop."""

    command: Command
    running: list[FakeChild]
    info: dict[str, Any] = field(default_factory=lambda: {"grpc": "127.0.0.1:1"})
    up: bool = False
    failures: int = 0
    last_words: str = ""

    @property
    def name(self) -> str:
        return self.command.name

    def start(self) -> None:
        self.up = True
        self.running.append(self)

    async def stop(self, grace_seconds: float, hurry: asyncio.Event | None = None) -> None:
        if self.up:
            self.up = False
            self.running.remove(self)


class Machine:
    """Real Lanes over fake processes; a drain lasts until `drained` is set."""

    def __init__(self, folder: Path, make_pair: MakePair) -> None:
        self.running: list[FakeChild] = []
        self.drained = asyncio.Event()
        self.said: list[str] = []
        self.tasks = Tasks("up")
        self._make_pair = make_pair
        site = Site(pair="tiny", uid="u", run_dir=folder, redis_url="", environment={})
        self.lanes = Lanes(site, self._new_child, self.tasks, lambda: None, self.said.append)

    def _new_child(self, command: Command) -> Child:
        return cast(Child, FakeChild(command, self.running))

    def pair(self, decodes: int) -> StreamPair:
        return self._make_pair({"spec.lanes": 1, "spec.decode.replicas": decodes})

    def carry_out(self, action: Any, *, decodes: int = 2, revision: str = "a") -> None:
        self.lanes.carry_out(action, self.pair(decodes), revision, DRAIN_SECONDS)

    async def ticks(self, count: int, *, decodes: int, revision: str = "a") -> None:
        """So many steps of the planner, with what it asks for carried out."""
        for _ in range(count):
            step = plan(Wanted(revision=revision, lanes=1, decode_replicas=decodes), self.lanes.observe(None))
            for action in step.actions:
                self.carry_out(action, decodes=decodes, revision=revision)
            await _settle()

    @property
    def names(self) -> list[str]:
        return sorted(child.name for child in self.running)

    @property
    def unknown(self) -> list[str]:
        """Processes that nobody would ever stop."""
        known = {id(child) for child in self.lanes.children}
        return [child.name for child in self.running if id(child) not in known]


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def machine(tmp_path: Path, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    one = Machine(tmp_path, make_pair)

    async def drains(prefills: Iterable[str], decodes: Iterable[str], timeout_seconds: float) -> int:
        await one.drained.wait()
        return 0

    waits: Callable[..., Awaitable[int]] = drains
    monkeypatch.setattr(drain, "drain", waits)
    yield one
    await one.tasks.stop()
    assert not one.tasks.failed.is_set(), one.tasks.error


async def test_a_replica_that_is_wanted_again_while_it_drains_is_started_once_when_it_is_gone(machine: Machine) -> None:
    await machine.ticks(1, decodes=2)
    await machine.ticks(3, decodes=1)
    await machine.ticks(5, decodes=2)
    assert machine.names == ["lane-0-decode-0", "lane-0-decode-1", "lane-0-prefill-0"]
    machine.drained.set()
    await _settle()
    assert machine.names == ["lane-0-decode-0", "lane-0-prefill-0"]
    await machine.ticks(3, decodes=2)
    assert machine.names == ["lane-0-decode-0", "lane-0-decode-1", "lane-0-prefill-0"]
    assert machine.unknown == []


async def test_edits_to_and_fro_while_a_replica_drains_leave_no_process_behind(machine: Machine) -> None:
    for decodes in (2, 1, 2, 1, 2, 1):
        await machine.ticks(2, decodes=decodes)
    machine.drained.set()
    await machine.ticks(3, decodes=1)
    assert machine.names == ["lane-0-decode-0", "lane-0-prefill-0"]
    assert machine.unknown == []


async def test_a_lane_that_is_replaced_while_a_replica_of_it_drains_leaves_no_process_behind(machine: Machine) -> None:
    await machine.ticks(1, decodes=2)
    await machine.ticks(1, decodes=1)
    await machine.ticks(2, decodes=2, revision="b")
    machine.drained.set()
    await machine.ticks(3, decodes=2, revision="b")
    assert machine.names == ["lane-0-decode-0", "lane-0-decode-1", "lane-0-prefill-0"]
    assert machine.unknown == []
    assert machine.lanes.lanes[0].revision == "b"
    assert machine.lanes.lanes[0].leaving == set()


async def test_a_worker_is_never_started_over_another(machine: Machine) -> None:
    machine.carry_out(StartLane(0, Reason.MISSING))
    machine.carry_out(StartWorker(0, SECOND))
    machine.carry_out(StartLane(0, Reason.MISSING))
    assert machine.names == ["lane-0-decode-0", "lane-0-decode-1", "lane-0-prefill-0"]
    assert machine.unknown == []


async def test_the_end_of_a_retirement_takes_only_the_worker_that_it_was_about(machine: Machine) -> None:
    machine.carry_out(StartLane(0, Reason.MISSING))
    machine.carry_out(RetireWorker(0, SECOND))
    lane = machine.lanes.lanes[0]
    gone = lane.children.pop(SECOND)
    successor = FakeChild(gone.command, machine.running)
    lane.children[SECOND] = cast(Child, successor)
    successor.start()
    machine.drained.set()
    await _settle()
    assert lane.children[SECOND] is cast(Child, successor)
    assert machine.unknown == []


async def test_a_lane_that_retires_takes_a_replica_that_drains_with_it(machine: Machine) -> None:
    machine.carry_out(StartLane(0, Reason.MISSING))
    machine.carry_out(RetireWorker(0, SECOND))
    machine.carry_out(RetireLane(0, Reason.SCALED_DOWN))
    machine.drained.set()
    await _settle()
    assert machine.names == []
    assert machine.lanes.lanes == {}


def of_the_router(revision: str = "a") -> Fleet:
    return Fleet(lanes=(LaneRow(name="lane-0", revision=revision, state=READY, reason="", workers=()),))


def away(machine: Machine, slot: Slot, *, up: bool = False) -> None:
    cast(FakeChild, machine.lanes.lanes[0].children[slot]).up = up


async def test_a_lane_begins_whole_and_a_worker_that_is_added_takes_nothing_from_it(machine: Machine) -> None:
    machine.carry_out(StartLane(0, Reason.MISSING))
    away(machine, SECOND)
    assert not machine.lanes.observe(of_the_router())[0].ready
    away(machine, SECOND, up=True)
    assert machine.lanes.observe(of_the_router())[0].ready
    machine.carry_out(StartWorker(0, Slot("prefill", 1)))
    away(machine, Slot("prefill", 1))
    assert machine.lanes.observe(of_the_router())[0].ready
    assert machine.said.count("lane-0: takes traffic") == 1
    assert not [line for line in machine.said if "takes no traffic" in line]


async def test_a_lane_without_a_worker_of_one_role_takes_no_traffic(machine: Machine) -> None:
    machine.carry_out(StartLane(0, Reason.MISSING))
    assert machine.lanes.observe(of_the_router())[0].ready
    away(machine, Slot("prefill", 0))
    assert not machine.lanes.observe(of_the_router())[0].ready
    assert machine.said[-1] == "lane-0: takes no traffic (a worker is away)"
