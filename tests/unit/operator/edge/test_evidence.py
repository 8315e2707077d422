"""When the routers' records of a hold are read, how many of them, and what is known of them meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
from redis.exceptions import ConnectionError as RedisAway

from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.runtime_config import ConfigId
from streamserve.operator.edge import evidence
from streamserve.operator.edge.evidence import PATIENCE_SECONDS, RECENT, WHOLE_SECONDS, Evidence
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.store import Key

KEY: Key = ("llm", "llama")
BEGAN = 1_800_000_000.0


def record(minute: int, step: int = 0) -> GoodputMinute:
    return GoodputMinute(minute=minute, config=ConfigId(uid="u", generation=1, step=step))


class Link:
    def __init__(self) -> None:
        self.away = False
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked: list[Mapping[Key, int]] = []
        self.lists: dict[str, list[GoodputMinute]] = {}

    async def goodput(self, newest: Mapping[Key, int]) -> dict[Key, dict[str, list[GoodputMinute]]]:
        self.asked.append(newest)
        await self.may_answer.wait()
        if self.away:
            raise RedisAway("refused")
        return {key: {router: found[-count:] for router, found in self.lists.items()} for key, count in newest.items()}


class Bench:
    def __init__(self) -> None:
        self.now, self.link = 0.0, Link()
        self.told: list[Key] = []
        self.errors: list[BaseException] = []
        self.fence = Fence(lambda: 0.0)
        self.fence.raise_until(1.0)
        self.evidence = Evidence(
            self.fence, ask=self.told.append, clock=lambda: self.now, wall_clock=lambda: BEGAN + self.now
        )

    async def rounds(self, count: int = 3) -> None:
        """At least so many readings, or as long as they would take."""
        wanted = len(self.link.asked) + count
        for _ in range(40):
            if len(self.link.asked) >= wanted:
                return
            await asyncio.sleep(0.005)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(evidence, "READ_SECONDS", 0.001)
    made = Bench()
    running = asyncio.create_task(made.evidence.run(made.link, away=made.errors.append))
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_without_a_hold_nothing_is_read(bench: Bench) -> None:
    bench.evidence.want(KEY, None)
    await bench.rounds()
    assert bench.link.asked == []
    assert bench.evidence.known(KEY) is None


async def test_a_hold_knows_nothing_until_it_was_read_and_then_all_since_it_began(bench: Bench) -> None:
    bench.link.lists = {"a": [record(1), record(2)], "b": [record(2)]}
    bench.now = 600.0
    bench.evidence.want(KEY, BEGAN)
    assert bench.evidence.known(KEY) is None
    await bench.rounds()
    assert bench.link.asked[0] == {KEY: 12}
    assert {count[KEY] for count in bench.link.asked[1:]} == {RECENT}
    assert bench.evidence.known(KEY) == {"a": (record(1), record(2)), "b": (record(2),)}
    assert bench.told == [KEY], "once, for nothing changed since"


async def test_an_empty_answer_is_an_answer_and_is_told(bench: Bench) -> None:
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    assert (bench.evidence.known(KEY), bench.told) == ({}, [KEY])


async def test_a_new_record_is_told_and_one_that_comes_again_is_not(bench: Bench) -> None:
    bench.link.lists = {"a": [record(1)]}
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    bench.link.lists["a"] += [record(1), record(2)]
    await bench.rounds()
    assert bench.evidence.known(KEY) == {"a": (record(1), record(2))}
    assert bench.told == [KEY, KEY]


async def test_records_that_come_late_are_found_when_all_are_read_again(bench: Bench) -> None:
    bench.link.lists = {"a": [record(9)]}
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    late = [record(minute) for minute in range(1, 9)]
    bench.link.lists["a"] = [*late, record(9)]
    await bench.rounds()
    bench.now = WHOLE_SECONDS * 10
    await bench.rounds()
    known = bench.evidence.known(KEY)
    assert known is not None
    assert {each.minute for each in known["a"]} == set(range(1, 10))


async def test_what_redis_has_lost_is_still_known_here(bench: Bench) -> None:
    bench.link.lists = {"a": [record(1)]}
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    bench.link.lists = {}
    bench.now = 2 * WHOLE_SECONDS
    await bench.rounds()
    assert bench.evidence.known(KEY) == {"a": (record(1),)}


async def test_while_redis_is_away_nothing_is_known_for_a_while_and_then_nothing_is_there(bench: Bench) -> None:
    bench.link.away = True
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    assert bench.errors
    assert bench.evidence.known(KEY) is None
    bench.now = PATIENCE_SECONDS
    assert bench.evidence.known(KEY) == {}
    bench.link.away, bench.link.lists = False, {"a": [record(1)]}
    await bench.rounds()
    assert bench.evidence.known(KEY) == {"a": (record(1),)}


async def test_another_hold_begins_with_nothing_and_an_end_forgets(bench: Bench) -> None:
    bench.link.lists = {"a": [record(1)]}
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    bench.link.away = True
    bench.evidence.want(KEY, BEGAN)
    assert bench.evidence.known(KEY) == {"a": (record(1),)}
    bench.evidence.want(KEY, BEGAN + 1)
    assert bench.evidence.known(KEY) is None
    bench.evidence.want(KEY, None)
    await bench.rounds()
    assert bench.evidence.known(KEY) is None


async def test_what_was_read_in_an_earlier_term_is_nothing_known_until_all_is_read_again(bench: Bench) -> None:
    bench.link.lists = {"a": [record(1)]}
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    assert bench.evidence.known(KEY) == {"a": (record(1),)}
    bench.link.away = True
    bench.now = 3_000.0
    bench.told.clear()
    bench.evidence.begin_term()
    assert bench.evidence.known(KEY) is None
    await bench.rounds()
    assert (bench.evidence.known(KEY), bench.told) == (None, [])
    bench.link.away, bench.link.lists = False, {"a": [record(minute) for minute in range(2, 50)]}
    await bench.rounds()
    known = bench.evidence.known(KEY)
    assert known is not None
    assert [each.minute for each in known["a"]] == list(range(1, 50)), "Redis has lost the first, this process has not"
    assert bench.told == [KEY]


async def test_an_answer_that_was_asked_for_in_an_earlier_term_is_none(bench: Bench) -> None:
    bench.link.may_answer.clear()
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds(1)
    bench.fence.lower()
    bench.fence.raise_until(1.0)
    bench.link.lists = {"a": [record(1)]}
    bench.link.may_answer.set()
    await bench.rounds(1)
    assert bench.link.asked[1] == {KEY: RECENT + 1}, "all is asked for again"


async def test_a_process_that_does_not_lead_reads_nothing(bench: Bench) -> None:
    bench.fence.lower()
    bench.evidence.want(KEY, BEGAN)
    await bench.rounds()
    assert bench.link.asked == []
