"""The operator killed after its k-th write, which it never hears of: its successor ends where it would have ended."""

from __future__ import annotations

import time

import pytest
from tests.controlplane.faults.conftest import Undisturbed
from tests.controlplane.faults.scenarios import BY_NAME, Stage

# The writes of an undisturbed run vary with what falls together; past its last one the operator is killed at rest.
POINTS = {"create": 40, "hot-edit": 6, "rollout": 48, "scale-up": 24, "scale-down": 16, "delete": 2}
SAMPLE = {
    "create": (1, 5, 10, 17),
    "hot-edit": (1, 2),
    "rollout": (1, 4, 9, 16),
    "scale-up": (3, 9),
    "scale-down": (2, 4),
    "delete": (1,),
}
REST_SECONDS = 4.0
LIMIT_SECONDS = 90.0
CASES = [
    pytest.param(name, k, id=f"{name}-{k}", marks=() if k in SAMPLE[name] else pytest.mark.everything)
    for name, points in POINTS.items()
    for k in range(1, points + 1)
]


@pytest.mark.parametrize(("name", "k"), CASES)
def test_killed_after_the_kth_write(name: str, k: int, stage: Stage, undisturbed: Undisturbed) -> None:
    scenario = BY_NAME[name]
    wanted, _ = undisturbed.of(name, stage)
    victim = stage.operate()
    before = stage.prepare(scenario)
    killed: list[int] = []

    def after_write(number: int) -> None:
        if number == k:
            victim.kill()
            killed.append(number)

    stage.proxy.after_write = after_write
    scenario.change(stage.bench)
    if not _dies(stage, killed):
        victim.kill()
    stage.proxy.undisturbed()
    stage.operate()
    assert stage.settle(remains=scenario.remains) == wanted
    assert stage.uids(scenario.untouched) == before


def test_every_write_of_an_undisturbed_run_is_a_crash_point(stage: Stage, undisturbed: Undisturbed) -> None:
    for name, points in POINTS.items():
        _, writes = undisturbed.of(name, stage)
        assert writes <= points, f"{name} takes {writes} writes: raise POINTS"


def _dies(stage: Stage, killed: list[int]) -> bool:
    """False where it came to rest with fewer writes."""
    end, last, since = time.monotonic() + LIMIT_SECONDS, -1, time.monotonic()
    while not killed and time.monotonic() < end:
        if (now := len(stage.proxy.writes)) != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > REST_SECONDS:
            return False
        time.sleep(0.05)
    return bool(killed)
