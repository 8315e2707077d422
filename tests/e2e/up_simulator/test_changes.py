"""Edits that start and stop processes, with clients that stream all the while."""

from __future__ import annotations

import asyncio
from typing import Any


def in_thread(function: Any, *args: Any, **kwargs: Any) -> Any:
    return asyncio.to_thread(function, *args, **kwargs)


async def test_lanes_are_added_and_drained_while_clients_stream(up: Any, stream: Any) -> None:
    await in_thread(up.start)
    async with stream(up.ready["grpc"]) as load:
        before = up.edit("lanes: 2 ", "lanes: 3 ")
        await in_thread(up.line, "lane-2: takes traffic", after=before, seconds=60)
        up.line("scale: spec.lanes 2 → 3", after=before)
        assert up.all_ready(3)
        before = up.edit("lanes: 3 ", "lanes: 1 ")
        await in_thread(up.line, "lane-2: stopped", after=before, seconds=60)
        await in_thread(up.line, "lane-1: stopped", after=before, seconds=60)
        await in_thread(up.until, lambda: up.all_ready(1), 20, "one lane")
        answered = load.answered
        await asyncio.sleep(0.5)
        assert load.answered > answered
    assert load.failures == []


async def test_a_cold_edit_replaces_lane_after_lane_while_clients_stream(up: Any, stream: Any) -> None:
    await in_thread(up.start)
    old = {revision for _, revision in up.states().values()}
    fewest = 2
    async with stream(up.ready["grpc"]) as load:
        before = up.edit('max-num-seqs: "16"', 'max-num-seqs: "12"')
        await in_thread(up.line, "cold, replaces lane after lane", "max-num-seqs 16 → 12", after=before)

        async def replaced() -> bool:
            nonlocal fewest
            states = await in_thread(up.states)
            if states:
                fewest = min(fewest, sum(state == "Ready" for state, _ in states.values()))
            new = {revision for _, revision in states.values()}
            return len(states) == 2 and not new & old and all(state == "Ready" for state, _ in states.values())

        async with asyncio.timeout(90):
            while not await replaced():
                pass
        # `up` tells it a moment after the router has begun to send there.
        await in_thread(up.line, "lane-1: takes traffic", after=before)
    assert load.failures == []
    assert load.answered > 10
    assert fewest >= 1
    told = [line[9:] for line in up.lines()[before:] if "retires" in line or "takes traffic" in line]
    kinds = [("retires" if "retires" in line else "ready", line[:6]) for line in told]
    assert [kind for kind, _ in kinds] == ["retires", "ready", "retires", "ready"], told


def test_a_bad_revision_stops_after_one_lane_and_mending_the_file_goes_on(up: Any, cli: Any) -> None:
    up.start()
    before = up.edit('max-model-len: "2048"', 'max-model-len: "-7"')
    up.line("halted: lane-0 of revision", "Nothing else is replaced", after=before, seconds=60)
    assert cli("generate", "--server", up.ready["grpc"], "--max-tokens", "4", "Hello").returncode == 0
    assert up.states()["lane-1"][0] == "Ready"
    before = up.edit('max-model-len: "-7"', 'max-model-len: "2048"')
    up.line("lane-0: takes traffic", after=before, seconds=60)
    up.until(lambda: up.all_ready(2), 10, "two lanes")
    assert not any("lane-1: retires" in line for line in up.lines())


def test_a_replica_is_added_to_every_lane_and_drained_again(up: Any) -> None:
    up.start("--lanes", "1")
    up.edit("  speculation:\n", "  decode: {replicas: 2}\n  speculation:\n")
    up.until(lambda: _workers(up, "lane-0-decode-1") and up.all_ready(1), 40, "the second decode")
    before = up.edit("decode: {replicas: 2}", "decode: {replicas: 1}")
    up.line("lane-0-decode-1: retires", after=before)
    up.until(lambda: not _workers(up, "lane-0-decode-1") and up.all_ready(1), 40, "its end")


def _workers(up: Any, name: str) -> list[Any]:
    return list(up.with_words(f"--id {name} "))
