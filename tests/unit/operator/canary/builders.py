"""Records and requests for canaries, hiding what a case is not about."""

from __future__ import annotations

from collections.abc import Sequence

from streamserve.contract.goodput import GoodputMinute, LaneGoodput
from streamserve.contract.runtime_config import ConfigId, DepthPolicyName, RuntimeConfig, SpeculationConfig
from streamserve.contract.streampair.policies import Rollout
from streamserve.operator.canary.law import Wanted

UID = "5f0c7a52-0000-4000-8000-000000000001"
OLD = SpeculationConfig(policy=DepthPolicyName.FIXED, max_depth=6, fixed_depth=3)
NEW = SpeculationConfig(policy=DepthPolicyName.GOODPUT, max_depth=6)
OTHER = SpeculationConfig(policy=DepthPolicyName.FIXED, max_depth=6, fixed_depth=1)
OFF = SpeculationConfig(policy=DepthPolicyName.OFF)
RULES = Rollout(canary_lanes=1, hold_seconds=120, min_requests=200, rollback_below_percent=90)


def config(speculation: SpeculationConfig = OLD, generation: int = 1, step: int = 0) -> RuntimeConfig:
    return RuntimeConfig(id=ConfigId(uid=UID, generation=generation, step=step), speculation=speculation)


def wanted(
    speculation: SpeculationConfig = NEW,
    generation: int = 2,
    *,
    lanes: int = 3,
    rules: Rollout = RULES,
    revision: str = "r1",
    max_depth: int = 6,
) -> Wanted:
    names = tuple(f"lane-{lane}" for lane in range(lanes))
    return Wanted(
        config=config(speculation, generation), rules=rules, lanes=names, revision=revision, max_depth=max_depth
    )


def row(lane: str, goodput: float, *, requests: int = 40, workload: str = "chat", seconds: float = 10.0) -> LaneGoodput:
    return LaneGoodput(
        lane=lane,
        workload=workload,
        requests=requests,
        requests_within_slo=requests,
        tokens_within_slo=round(goodput * seconds),
        engine_seconds=seconds,
    )


def record(minute: int, *rows: LaneGoodput, generation: int = 2, step: int = 0, uid: str = UID) -> GoodputMinute:
    return GoodputMinute(minute=minute, config=ConfigId(uid=uid, generation=generation, step=step), rows=tuple(rows))


WOBBLE = (0.97, 1.04, 1.0, 0.95, 1.03, 1.02, 0.96, 1.01, 0.99, 1.05, 0.98, 1.0)
"""What one lane does more or less than usual in successive minutes."""


def traffic(ratio: float, minutes: int = 12, *, generation: int = 2) -> dict[str, Sequence[GoodputMinute]]:
    """lane-0 has `ratio` of the goodput of lane-1 and lane-2."""
    found = [
        record(
            100 + minute,
            row("lane-0", 100 * ratio * WOBBLE[minute % 12]),
            row("lane-1", 100.0),
            row("lane-2", 100.0),
            generation=generation,
        )
        for minute in range(minutes)
    ]
    return {"router-0": found}
