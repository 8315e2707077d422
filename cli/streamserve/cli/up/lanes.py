"""The lanes that run: the planner's actions carried out, and what it is told about them.

A retirement is a task of its own: drain (bounded by update.drainSeconds), stop, forget. A worker restarted by its
supervisor keeps its command line; a lane keeps the spec of its revision, so that a worker added to it later matches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from streamserve.cli.fleet_view import READY, Fleet
from streamserve.cli.up import commands, drain
from streamserve.cli.up.commands import Command, Site
from streamserve.cli.up.supervisor import Child
from streamserve.contract.lanes import Action, LaneNow, RetireLane, RetireWorker, Slot, StartLane, StartWorker
from streamserve.contract.launch import lane_name, worker_name
from streamserve.contract.streampair import StreamPair
from streamserve.runtime.tasks import Tasks

# After its drain a worker ends its engine, which takes 10 s at most.
STOP_SECONDS: Final = commands.WORKER_DRAIN_SECONDS + 10.0
NewChild = Callable[[Command], Child]


@dataclass(slots=True)
class Lane:
    """`pair` is the spec that its workers were started with."""

    index: int
    revision: str
    pair: StreamPair
    children: dict[Slot, Child] = field(default_factory=dict)
    leaving: set[Slot] = field(default_factory=set)
    retiring: bool = False
    ready: bool = False
    was_ready: bool = False
    unready_since: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return lane_name(self.index)

    @property
    def staying(self) -> dict[Slot, Child]:
        return {slot: child for slot, child in self.children.items() if slot not in self.leaving}

    @property
    def serves(self) -> bool:
        """Whether its processes let it: all of them before it was ready, then one of each role. A worker that is added,
        and loads its model for half a minute, takes nothing from those that serve."""
        up = [slot.role for slot, child in self.staying.items() if child.up]
        return {"prefill", "decode"} <= set(up) if self.was_ready else 0 < len(up) == len(self.staying)


class Lanes:
    """Owns every worker process."""

    def __init__(
        self,
        site: Site,
        new_child: NewChild,
        tasks: Tasks,
        changed: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._site = site
        self._new_child = new_child
        self._tasks = tasks
        self._changed = changed
        self._say = say
        self.lanes: dict[int, Lane] = {}

    @property
    def children(self) -> list[Child]:
        return [child for lane in self.lanes.values() for child in lane.children.values()]

    def addresses(self, *, revision: str | None = None) -> dict[str, str]:
        """Workers that are up and stay, by name: those that a new configuration has to reach."""
        return {
            child.name: str(child.info["grpc"])
            for lane in self.lanes.values()
            if not lane.retiring and (revision is None or lane.revision == revision)
            for child in lane.staying.values()
            if child.up and "grpc" in child.info
        }

    def fleet(self) -> dict[str, object]:
        """The fleet file: every worker that is up, so that a router finds them without Redis."""
        workers = [
            {
                "id": child.name,
                "role": slot.role,
                "lane": lane.name,
                "revision": lane.revision,
                "address": child.info["grpc"],
            }
            for _, lane in sorted(self.lanes.items())
            for slot, child in sorted(lane.children.items())
            if child.up and "grpc" in child.info
        ]
        return {"workers": workers}

    def observe(self, fleet: Fleet | None) -> tuple[LaneNow, ...]:
        """What runs, with the router's word on which lane takes traffic (None: the router does not answer)."""
        now = time.monotonic()
        states = fleet.states if fleet is not None else {}
        for lane in self.lanes.values():
            seen = states.get(lane.name)
            up = lane.serves
            if fleet is None:
                ready = lane.ready and up
            else:
                ready = up and seen is not None and seen.state == READY and seen.revision in ("", lane.revision)
            if ready and not lane.ready and not lane.retiring:
                self._say(f"{lane.name}: takes traffic")
                for child in lane.children.values():
                    child.failures = 0
            if lane.ready and not ready:
                lane.unready_since = now
                if not lane.retiring:
                    why = seen.reason if seen is not None and seen.reason else "a worker is away"
                    self._say(f"{lane.name}: takes no traffic ({why})")
            lane.ready = ready
            lane.was_ready = lane.was_ready or ready
        return tuple(self._now(lane, now) for _, lane in sorted(self.lanes.items()))

    def _now(self, lane: Lane, now: float) -> LaneNow:
        failures = sum(child.failures for child in lane.children.values())
        worst = max(lane.children.values(), key=lambda child: child.failures, default=None)
        return LaneNow(
            index=lane.index,
            revision=lane.revision,
            slots=frozenset(lane.children),
            leaving=frozenset(lane.leaving),
            ready=lane.ready,
            was_ready=lane.was_ready,
            retiring=lane.retiring,
            failures=failures,
            unready_seconds=0.0 if lane.ready else now - lane.unready_since,
            last_words=worst.last_words if worst is not None and failures else "",
        )

    def carry_out(self, action: Action, pair: StreamPair, revision: str, drain_seconds: float) -> None:
        """Begin it; whatever takes time goes on by itself and calls `changed` when it is done."""
        match action:
            case StartLane(index, _):
                if index in self.lanes:
                    return
                lane = self.lanes[index] = Lane(index, revision, pair)
                self._say(f"{lane.name}: starts, revision {revision}")
                for slot in [
                    *(Slot("prefill", i) for i in range(pair.spec.prefill.replicas)),
                    *(Slot("decode", i) for i in range(pair.spec.decode.replicas)),
                ]:
                    self._start(lane, slot)
            case RetireLane(index, reason):
                lane = self.lanes[index]
                lane.retiring = True
                self._say(f"{lane.name}: retires ({reason}), drains for at most {drain_seconds:.0f} s")
                self._tasks.spawn(f"retire/{lane.name}", self._retire(lane, drain_seconds))
            case StartWorker(index, slot, _):
                if self._start(self.lanes[index], slot):
                    self._say(f"{worker_name(index, slot)}: added")
            case RetireWorker(index, slot, _):
                lane = self.lanes[index]
                child = lane.children[slot]
                lane.leaving.add(slot)
                self._say(f"{worker_name(index, slot)}: retires, drains for at most {drain_seconds:.0f} s")
                self._tasks.spawn(f"retire/{lane.name}/{slot}", self._retire_worker(lane, slot, child, drain_seconds))

    def _start(self, lane: Lane, slot: Slot) -> bool:
        """False where a worker has the place: it would be a process that nobody stops. The planner asks again."""
        if slot in lane.children:
            return False
        child = self._new_child(commands.worker(self._site, lane.pair, lane.index, slot, lane.revision))
        lane.children[slot] = child
        child.start()
        return True

    async def _retire(self, lane: Lane, drain_seconds: float) -> None:
        await self._drain(lane, lane.children, drain_seconds)
        await asyncio.gather(*(child.stop(STOP_SECONDS) for child in lane.children.values()))
        del self.lanes[lane.index]
        self._say(f"{lane.name}: stopped")
        self._changed()

    async def _retire_worker(self, lane: Lane, slot: Slot, child: Child, drain_seconds: float) -> None:
        await self._drain(lane, {slot: child}, drain_seconds)
        await child.stop(STOP_SECONDS)
        if lane.children.get(slot) is child:
            del lane.children[slot]
            lane.leaving.discard(slot)
        self._changed()

    async def _drain(self, lane: Lane, children: Mapping[Slot, Child], drain_seconds: float) -> None:
        def addresses(role: str) -> list[str]:
            return [
                str(child.info["grpc"])
                for slot, child in children.items()
                if slot.role == role and child.up and "grpc" in child.info
            ]

        began = time.monotonic()
        left = await drain.drain(addresses("prefill"), addresses("decode"), drain_seconds)
        unfinished = f", {left} requests unfinished" if left else ""
        self._say(f"{lane.name}: drained in {time.monotonic() - began:.1f} s{unfinished}")
