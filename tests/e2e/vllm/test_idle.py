"""A lane that does nothing takes nothing."""

from __future__ import annotations

import asyncio

import psutil
from real_fleet import RealFleet

SECONDS = 10.0
WINDOWS = 6
CORES = 0.1


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and of everything below it."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


async def test_a_lane_that_is_idle_for_ten_seconds_uses_less_than_a_tenth_of_a_core(fleet: RealFleet) -> None:
    async with fleet.client() as client:
        await client.idle(60)
    workers = dict(fleet.workers())
    lanes = sorted({name.partition("-prefill")[0].partition("-decode")[0] for name in workers})
    assert len(lanes) == 2
    await asyncio.sleep(SECONDS)
    seen = []
    # What disturbs the machine meanwhile can only add to what a lane takes: one undisturbed window is enough.
    for _ in range(WINDOWS):
        before = {name: cpu_seconds(process) for name, process in workers.items()}
        await asyncio.sleep(SECONDS)
        used = {name: (cpu_seconds(process) - before[name]) / SECONDS for name, process in workers.items()}
        seen.append({lane: sum(cores for name, cores in used.items() if name.startswith(lane)) for lane in lanes})
        if max(seen[-1].values()) < CORES:
            break
    print("cores:", seen)
    assert max(seen[-1].values()) < CORES, seen
