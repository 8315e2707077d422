"""Each routing policy does what its name says, and a running router changes from one to the other at once.

The stage is set so that no two of the three agree: lane 0's decode worker has three requests of strangers, lane 1's
is three times slower. RoundRobin sees neither, LeastRequest sees only the strangers, FlowGuard weighs both.
"""

from __future__ import annotations

import itertools

from tests.support import calls
from tests.support.calls import generate, request
from tests.support.processes import LocalFleet, wait_until
from tests.support.steady_load import behind_the_back

from streamserve.contract import signals
from streamserve.contract.runtime_config import RoutingPolicy

from .switch import route_by

REQUESTS = 4
STRANGERS = 3
# The fleet is slowed four times already.
SLOWDOWN = 12.0
BUSY, SLOW = "lane-0", "lane-1"


def lanes_of(fleet: LocalFleet, policy: RoutingPolicy) -> list[str]:
    """Who serves requests that come one after the other under `policy`."""
    route_by(fleet, policy)
    answers = [
        generate(fleet.grpc, request(f"ask {n}", workload="policies", max_tokens=16, ignore_eos=True))
        for n in range(REQUESTS)
    ]
    assert [answer.error for answer in answers] == [None] * REQUESTS
    return [answer.route.lane for answer in answers]


async def test_every_policy_is_honoured_and_switched_while_the_router_runs(fleet: LocalFleet) -> None:
    router = fleet.router.pid
    fleet.fault(f"{SLOW}-decode-0", slowdown=SLOWDOWN)
    in_turn = lanes_of(fleet, RoutingPolicy.ROUND_ROBIN)
    assert set(in_turn) == {BUSY, SLOW}
    assert all(one != following for one, following in itertools.pairwise(in_turn)), in_turn
    async with behind_the_back(fleet[f"{BUSY}-decode-0"], requests=STRANGERS):
        wait_until(lambda: requests_on(fleet, f"{BUSY}-decode-0") >= STRANGERS, seconds=1, what="the router sees them")
        assert lanes_of(fleet, RoutingPolicy.LEAST_REQUEST) == [SLOW] * REQUESTS
        assert lanes_of(fleet, RoutingPolicy.FLOW_GUARD) == [BUSY] * REQUESTS
        again = lanes_of(fleet, RoutingPolicy.ROUND_ROBIN)
    assert sorted(again) == sorted([BUSY, SLOW] * (REQUESTS // 2))
    assert fleet.router.pid == router and fleet.router.alive


def requests_on(fleet: LocalFleet, name: str) -> int:
    """By the signals that the router has."""
    view = calls.get_fleet(fleet.grpc)
    (packed,) = [worker.signals for lane in view.lanes for worker in lane.workers if worker.worker.id == name]
    seen = signals.decode(packed)
    return seen.running_requests + seen.waiting_requests
