"""Who writes: never two at once, whatever is slow, stopped or away. The Lease lies in memory, the clocks are ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.operator.edge.fence import Fence, NotLeader
from streamserve.operator.edge.lease import Elector, LeaseSettings
from streamserve.operator.edge.outcomes import Conflict, NotFound, Unreachable

Body = dict[str, Any]


class World:
    """One clock and one Lease, with a resourceVersion that is compared as the API server does."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.lease: Body | None = None
        self.version = 0
        self.away = False

    async def get(self, path: str) -> Body:
        self._up()
        if self.lease is None:
            raise NotFound("no lease", status=404)
        return copy.deepcopy(self.lease)

    async def send(self, method: str, path: str, body: Mapping[str, Any], **_: object) -> Body:
        self._up()
        if method == "POST" and self.lease is not None:
            raise Conflict("it exists", status=409)
        if method == "PUT" and (
            self.lease is None or body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]
        ):
            raise Conflict("another version", status=409)
        self.version += 1
        self.lease = copy.deepcopy(dict(body))
        self.lease["metadata"] |= {"resourceVersion": str(self.version)}
        return self.lease

    def _up(self) -> None:
        if self.away:
            raise Unreachable("no route")


class Process:
    """One operator: `healthy` is what it would say of itself."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.fence = Fence(lambda: world.now)
        self.trouble: str | None = None
        self.elector = Elector(
            world,  # type: ignore[arg-type]  # the two methods that it uses
            self.fence,
            LeaseSettings(namespace="system", name="operator", identity=name),
            healthy=lambda: self.trouble,
            rng=Random(1),
            utc_now=lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=world.now),
        )

    async def step(self) -> bool:
        await self.elector.step()
        return self.fence.is_up


async def test_the_first_takes_the_lease_and_the_second_waits() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    assert await first.step()
    assert not await second.step()
    assert world.lease is not None
    assert world.lease["spec"]["holderIdentity"] == "first"


async def test_a_leader_renews_and_keeps_it() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    for _ in range(50):
        assert await first.step()
        assert not await second.step()
        world.now += 2.0
    assert world.lease is not None
    assert world.lease["spec"]["leaseTransitions"] == 0


async def test_a_silent_leader_stops_writing_five_seconds_before_the_second_may_take_it() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    await first.step()
    await second.step()
    world.now += 9.9
    first.fence.check()
    world.now += 0.2
    with pytest.raises(NotLeader):
        first.fence.check()
    assert not await second.step()
    world.now += 4.7
    assert not await second.step()
    world.now += 0.3
    assert await second.step()


async def test_a_process_that_was_stopped_past_its_lease_writes_nothing_when_it_goes_on() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    await first.step()
    await second.step()
    world.now += 60.0
    assert await second.step()
    assert not first.fence.is_up, "before it has asked anybody anything"
    assert not await first.step()
    assert second.fence.is_up


async def test_a_process_that_was_stopped_while_nobody_else_waited_goes_on_after_it_renewed() -> None:
    world = World()
    first = Process(world, "first")
    await first.step()
    world.now += 60.0
    assert not first.fence.is_up
    assert await first.step()


async def test_a_lease_that_was_released_is_taken_at_once() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    await first.step()
    await second.step()
    await first.elector.release()
    assert not first.fence.is_up
    assert await second.step()


async def test_a_leader_that_does_not_work_gives_the_lease_up_by_not_renewing_it() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    await first.step()
    first.trouble = "the queue is stuck"
    for _ in range(9):
        await first.step()
        await second.step()
        world.now += 2.0
    assert not first.fence.is_up
    assert second.fence.is_up


async def test_who_looks_well_as_soon_as_it_does_not_lead_leaves_the_lease_to_the_others() -> None:
    """A loop that stands still because it leads: its trouble goes with the Lease, and comes back with it."""
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    first.elector._healthy = lambda: "the queue is stuck" if first.fence.is_up else None
    await first.step()
    for _ in range(20):
        await first.step()
        await second.step()
        world.now += 2.0
    assert second.fence.is_up


async def test_who_is_alone_leads_again_after_others_had_the_time_to() -> None:
    world = World()
    alone = Process(world, "alone")
    await alone.step()
    alone.trouble = "the queue is stuck"
    for _ in range(6):
        world.now += 2.0
        await alone.step()
    assert not alone.fence.is_up
    alone.trouble = None
    assert not await alone.step()
    world.now += 20.0
    assert await alone.step()
    assert alone.fence.term == 2


async def test_who_does_not_work_still_hears_the_api_server() -> None:
    world = World()
    process = Process(world, "first")
    process.trouble = "the queue is stuck"
    await process.step()
    assert world.lease is None
    assert process.elector.answered_at == world.now


async def test_while_the_api_server_is_away_nobody_leads_and_afterwards_one_does() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    await first.step()
    await second.step()
    world.away = True
    for _ in range(30):
        world.now += 2.0
        await first.step()
        await second.step()
    assert (first.fence.is_up, second.fence.is_up) == (False, False)
    world.away = False
    assert [await first.step(), await second.step()].count(True) == 1


async def test_the_others_time_is_not_compared_with_ours() -> None:
    world = World()
    first, second = Process(world, "first"), Process(world, "second")
    await first.step()
    assert world.lease is not None
    world.lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert not await second.step()
    world.now += 14.9
    assert not await second.step()


def test_bounds_that_would_let_two_lead_are_refused() -> None:
    with pytest.raises(ValueError, match="retry < renew deadline < duration"):
        LeaseSettings(namespace="a", name="b", identity="c", duration_seconds=10.0, renew_deadline_seconds=10.0)


MOVES = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0.0, 20.0), st.booleans()),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(moves=MOVES)
async def test_two_processes_never_may_write_at_the_same_moment(moves: list[tuple[int, float, bool]]) -> None:
    """Each move: one process takes a step (or has been stopped all the while), time passes, the server may be away."""
    world = World()
    processes = [Process(world, name) for name in ("a", "b", "c")]
    for index, seconds, away in moves:
        world.away = away
        await processes[index].step()
        assert sum(each.fence.is_up for each in processes) <= 1
        world.now += seconds
        assert sum(each.fence.is_up for each in processes) <= 1
