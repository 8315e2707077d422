"""The loop around the queue: who is reconciled when, and what an ending means. Real time, milliseconds of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from random import Random

import pytest

from streamserve.operator.edge.controller import STUCK_SECONDS, WORKERS, Controller
from streamserve.operator.edge.fence import NotLeader
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ServerFailed
from streamserve.operator.edge.store import Change, Key, Store

A, B = ("llm", "a"), ("llm", "b")


class Bench:
    """A controller whose reconciles are counted, and end as `endings` say, one after another; then well."""

    def __init__(self) -> None:
        self.store, self.leads, self.metrics = Store(), asyncio.Event(), OperatorMetrics()
        self.runs: list[Key] = []
        self.endings: list[BaseException | float | None] = []
        self.held: asyncio.Event | None = None
        self.late, self.term = 0.0, 1
        self.controller = Controller(
            self.reconcile,
            self.store,
            self.leads,
            metrics=self.metrics,
            clock=lambda: time.monotonic() + self.late,
            rng=Random(1),
            term=lambda: self.term,
        )

    def age(self) -> float:
        return self.metrics.queue_age.collect()[0].samples[0].value

    def have(self, *keys: Key) -> None:
        for namespace, name in keys:
            metadata = {"namespace": namespace, "name": name, "uid": name}
            self.store.put({"apiVersion": "v1", "kind": "StreamPair", "metadata": metadata})

    async def reconcile(self, key: Key) -> float | None:
        self.runs.append(key)
        if self.held is not None:
            await self.held.wait()
        ending = self.endings.pop(0) if self.endings else None
        if isinstance(ending, BaseException):
            raise ending
        return ending

    def results(self) -> dict[str, float]:
        samples = self.metrics.reconcile_seconds.collect()[0].samples
        return {each.labels["result"]: each.value for each in samples if each.name.endswith("_count")}


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    running = asyncio.create_task(made.controller.run())
    yield made
    running.cancel()
    await made.controller.stop(0.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (what is waited for is the code under test)
            await asyncio.sleep(0.002)


async def test_standing_by_nothing_is_reconciled_and_with_the_lease_everything_is(bench: Bench) -> None:
    bench.have(A, B)
    bench.controller.ask(A)
    await asyncio.sleep(0.05)
    assert bench.runs == []
    bench.leads.set()
    await until(lambda: len(bench.runs) >= 2)
    await asyncio.sleep(0.05)
    assert sorted(bench.runs) == [A, B]


async def test_who_leads_again_looks_at_everything_again(bench: Bench) -> None:
    bench.have(A)
    bench.leads.set()
    await until(lambda: bench.runs == [A])
    bench.leads.clear()
    bench.controller.ask(A)
    await asyncio.sleep(0.05)
    assert bench.runs == [A]
    bench.leads.set()
    await until(lambda: bench.runs == [A, A])


@pytest.mark.parametrize("turns", range(5))
async def test_it_ends_when_it_is_told_to_while_something_wakes_it(turns: int) -> None:
    """`turns` of the event loop lie between the two."""
    made = Bench()
    made.leads.set()
    running = asyncio.create_task(made.controller.run())
    await asyncio.sleep(0.02)
    made.controller.ask(A)
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    ended, _ = await asyncio.wait([running], timeout=2.0)
    assert running in ended
    await made.controller.stop(1.0)


async def test_a_run_that_wants_another_gets_it(bench: Bench) -> None:
    bench.have(A)
    bench.endings = [0.01, 0.01, None]
    bench.leads.set()
    await until(lambda: len(bench.runs) == 3)


@pytest.mark.parametrize(
    ("ending", "result"),
    [(ServerFailed("broken"), "ServerFailed"), (TimeoutError(), "TimeoutError"), (ValueError("ours"), "defect")],
    ids=["an error of the server", "no end in time", "a defect of ours"],
)
async def test_what_ends_badly_is_tried_again(bench: Bench, ending: Exception, result: str) -> None:
    bench.have(A)
    bench.endings = [ending, None]
    bench.leads.set()
    await until(lambda: bench.results() == {result: 1.0, "ok": 1.0})


async def test_a_run_that_finds_the_lease_lost_is_tried_again_while_nobody_says_that_it_is(bench: Bench) -> None:
    bench.have(A)
    bench.endings = [NotLeader("lost")]
    bench.leads.set()
    await until(lambda: bench.results() == {"not_leading": 1.0, "ok": 1.0})


async def test_a_lease_that_was_lost_and_won_unseen_makes_it_look_at_everything(bench: Bench) -> None:
    bench.have(A, B)
    bench.leads.set()
    await until(lambda: sorted(bench.runs) == [A, B])
    bench.term += 1
    bench.controller.ask(A)
    await until(lambda: sorted(set(bench.runs[2:])) == [A, B])


async def test_a_new_spec_does_not_wait_for_the_backoff_of_the_one_before(bench: Bench) -> None:
    bench.have(A)
    bench.endings = [ServerFailed("slow", retry_after_seconds=60.0)]
    bench.leads.set()
    await until(lambda: bench.results() == {"ServerFailed": 1.0})
    bench.controller.changed(Change(A, new_spec=True))
    await until(lambda: bench.runs == [A, A])


async def test_one_pair_at_a_time_and_many_pairs_at_once(bench: Bench) -> None:
    keys = [("llm", f"p{number}") for number in range(3 * WORKERS)]
    bench.have(*keys)
    bench.held = asyncio.Event()
    bench.leads.set()
    await until(lambda: len(bench.runs) == WORKERS)
    for key in keys:
        bench.controller.ask(key)
    await asyncio.sleep(0.05)
    assert len(set(bench.runs)) == len(bench.runs) == WORKERS
    bench.held.set()
    await until(lambda: set(bench.runs) == set(keys))


async def test_a_stop_lets_what_is_under_way_finish(bench: Bench) -> None:
    bench.have(A)
    bench.held = asyncio.Event()
    bench.leads.set()
    await until(lambda: bench.runs == [A])
    bench.leads.clear()
    stopping = asyncio.create_task(bench.controller.stop(5.0))
    await asyncio.sleep(0.02)
    assert not stopping.done()
    bench.held.set()
    await stopping
    assert bench.results() == {"ok": 1.0}


async def test_a_queue_on_which_a_pair_waits_too_long_does_not_live(bench: Bench) -> None:
    bench.held = asyncio.Event()
    bench.have(*((("llm", f"p{number}")) for number in range(WORKERS + 1)))
    bench.leads.set()
    await until(lambda: len(bench.runs) == WORKERS)
    assert bench.controller.trouble() is None
    bench.late = STUCK_SECONDS + 1.0
    bench.controller.ask(A)
    await until(lambda: "no reconcile has ended" in (bench.controller.trouble() or ""))
    bench.held.set()


@pytest.mark.parametrize(("ending", "moves"), [(None, True), (ServerFailed(""), True), (TimeoutError(), False)])
async def test_a_long_queue_lives_while_reconciles_end_by_themselves(
    ending: BaseException | None, moves: bool, bench: Bench
) -> None:
    bench.have(*(("llm", f"p{number}") for number in range(2 * WORKERS + 1)))
    bench.held = first = asyncio.Event()
    bench.leads.set()
    await until(lambda: len(bench.runs) == WORKERS)
    bench.late, bench.endings = STUCK_SECONDS + 1.0, [ending] * WORKERS
    bench.held = asyncio.Event()
    first.set()
    await until(lambda: len(bench.runs) == 2 * WORKERS)
    assert bench.age() > STUCK_SECONDS, "the last one waits"
    assert ("no reconcile has ended" in (bench.controller.trouble() or "")) is not moves
    bench.held.set()


async def test_who_has_stood_by_for_long_is_not_late_when_it_leads(bench: Bench) -> None:
    bench.have(A)
    bench.controller.ask(A)
    bench.late = 10 * STUCK_SECONDS
    await asyncio.sleep(0.01)
    bench.controller.ask(B)
    bench.held = asyncio.Event()
    assert bench.age() == 0.0
    bench.leads.set()
    assert bench.age() == 0.0
    await until(lambda: A in bench.runs)
    assert bench.controller.trouble() is None
    assert bench.age() < 1.0
    bench.held.set()


async def test_what_is_missing_is_the_leaders_to_tell(bench: Bench) -> None:
    bench.leads.set()
    bench.have(A)
    bench.controller.ask(A)
    await until(lambda: A in bench.runs)
    bench.metrics.misses_lanes(A, 1)
    bench.leads.clear()
    bench.controller.ask(A)
    await until(lambda: not bench.metrics.missing_lanes.collect()[0].samples)


async def test_the_age_is_the_leaders(bench: Bench) -> None:
    bench.held = asyncio.Event()
    bench.have(*((("llm", f"p{number}")) for number in range(WORKERS + 1)))
    bench.leads.set()
    await until(lambda: len(bench.runs) == WORKERS)
    bench.late = 30.0
    assert bench.age() >= 30.0
    bench.leads.clear()
    assert bench.age() == 0.0
    bench.held.set()
