"""Canaries of a speculation setting on a real API server: a played router delivers the evidence, the operator judges.

The router's clock runs behind: its records are of minutes that are over already, so that a hold of seconds can end.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tests.support.operator_bench import PAIR, OperatorBench
from tests.support.processes import wait_until

from streamserve.contract import goodput, runtime_config
from streamserve.contract.goodput import GoodputMinute, LaneGoodput
from streamserve.contract.keys import Keyspace
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.operator.canary.memory import ANNOTATION
from streamserve.operator.edge.evidence import RECENT

MINUTES = 48
WOBBLE = (0.97, 1.04, 1.0, 0.95, 1.03, 1.02, 0.96, 1.01, 0.99, 1.05)
VERDICT_SECONDS = 45.0


def tried(bench: OperatorBench, hold_seconds: int) -> None:
    """A pair that serves with depth 4 at most, and of which one lane tries depth 2."""
    rollout = {"canaryLanes": 1, "holdSeconds": hold_seconds, "minRequests": 100, "rollbackBelowPercent": 90}
    bench.create()
    bench.until("Ready", "True")
    bench.until("ConfigApplied", "True")
    bench.edit({"speculation": {"depth": {"max": 2}, "rollout": rollout}})
    bench.until("ConfigApplied", "False", reason="CanaryHolding")
    wait_until(lambda: applied(bench).canary is not None, seconds=10, what="Redis has the canary")
    assert depths(bench) == {"lane-0": 2, "lane-1": 4}


def applied(bench: OperatorBench) -> RuntimeConfig:
    """The configuration in Redis, which every played worker obeys."""
    with bench.redis.client() as client:
        stored = client.get(Keyspace(bench.namespace, PAIR).config)
    assert isinstance(stored, bytes)
    return runtime_config.decode(stored)


def depths(bench: OperatorBench) -> dict[str, int]:
    config = applied(bench)
    return {lane: config.for_lane(lane).speculation.max_depth for lane in ("lane-0", "lane-1")}


def note(bench: OperatorBench) -> Any:
    notes = (bench.one("ConfigMap", "llama-config") or {})["metadata"].get("annotations", {})
    return json.loads(notes[ANNOTATION]) if ANNOTATION in notes else None


def deliver(bench: OperatorBench, ratio: float) -> None:
    """Records of the minutes before this one, in which lane-0 has `ratio` of the goodput of lane-1."""
    config, present = applied(bench).id, int(time.time() // 60)
    records = [
        GoodputMinute(
            minute=present - MINUTES + number,
            config=config,
            rows=tuple(
                LaneGoodput(
                    lane=lane,
                    workload="chat",
                    requests=40,
                    requests_within_slo=40,
                    tokens_within_slo=round(1_000 * share * WOBBLE[(number + shift) % len(WOBBLE)]),
                    engine_seconds=10.0,
                )
                for shift, (lane, share) in enumerate((("lane-0", ratio), ("lane-1", 1.0)))
            ),
        )
        for number in range(MINUTES)
    ]
    space = Keyspace(bench.namespace, PAIR)
    with bench.redis.client() as client:
        # A young hold is asked for its newest records only: each of these routers has no more.
        for start in range(0, MINUTES, RECENT):
            some = [goodput.encode(record) for record in records[start : start + RECENT]]
            client.rpush(space.router_goodput(f"{start:08x}"), *some)


def test_a_setting_that_is_worse_comes_back_and_one_that_is_not_goes_to_all_lanes(bench: OperatorBench) -> None:
    operator = bench.start("operator")
    tried(bench, 6)
    deliver(bench, 0.7)
    said = bench.until("ConfigApplied", "False", reason="CanaryWorse", seconds=VERDICT_SECONDS)
    assert "70." in said["message"]
    wait_until(lambda: depths(bench) == {"lane-0": 4, "lane-1": 4}, seconds=10, what="both lanes obey the old one")
    assert (applied(bench).id.order, note(bench)["state"]) == ((2, 1), "RolledBack")
    bench.until_quiet(operator)
    bench.edit({"speculation": {"depth": {"max": 3}}})
    bench.until("ConfigApplied", "False", reason="CanaryHolding")
    wait_until(lambda: depths(bench) == {"lane-0": 3, "lane-1": 4}, seconds=10, what="lane-0 tries another one")
    deliver(bench, 1.0)
    bench.until("ConfigApplied", "True", seconds=VERDICT_SECONDS)
    assert (depths(bench), note(bench)) == ({"lane-0": 3, "lane-1": 3}, None)
    assert applied(bench).id.order == (3, 1)


def test_an_operator_that_is_killed_in_a_hold_is_followed_by_one_that_goes_on_with_it(bench: OperatorBench) -> None:
    first = bench.start("first")
    tried(bench, 12)
    before = note(bench)
    first.kill()
    deliver(bench, 0.7)
    bench.start("second")
    bench.until("ConfigApplied", "False", reason="CanaryWorse", seconds=VERDICT_SECONDS)
    wait_until(lambda: depths(bench) == {"lane-0": 4, "lane-1": 4}, seconds=10, what="both lanes obey the old one")
    assert note(bench)["question"] == before["question"]
    assert applied(bench).id.order == (2, 1), "a hold that began again would have taken a step of its own"


def test_policy_off_is_on_every_lane_at_once_in_the_middle_of_a_hold(bench: OperatorBench) -> None:
    bench.start("operator")
    tried(bench, 600)
    began = time.monotonic()
    bench.edit({"speculation": {"policy": "Off"}})
    bench.until("ConfigApplied", "True", seconds=10)
    took = time.monotonic() - began
    config = applied(bench)
    assert (config.speculation.policy.value, config.canary) == ("Off", None)
    assert took < 5.0, f"{took:.1f} s"
