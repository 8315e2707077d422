"""What is heard of the processes of a pair, by Redis or by themselves, and who is asked to drain when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisAway

from streamserve.contract.goodput import GoodputMinute
from streamserve.contract.identity import fingerprint
from streamserve.contract.lane_word import LaneReport, LaneWord
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.contract.signals import Flags, Role, WorkerSignals
from streamserve.operator import naming
from streamserve.operator.canary.memory import Holding, Memory, Settled
from streamserve.operator.decide import Decision
from streamserve.operator.edge import drains
from streamserve.operator.edge.drains import Drains
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.fleet import _DIRECTLY_AFTER_SECONDS, AWAY_SECONDS, ProcessFleet, echo_of
from streamserve.operator.edge.members import Members, Worker, members
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.store import Key, Store
from streamserve.operator.observe import Echo, observe

Body = dict[str, Any]
KEY = ("llm", "llama")
UID = "pair-uid"
REVISION = "0123456789"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (what is waited for is the code under test)
            await asyncio.sleep(0.005)


def worker(role: str = "decode", lane: int = 0, **changes: Any) -> Worker:
    made = Worker(
        pod=f"llama-{role}-{lane}-0-{REVISION}",
        uid=f"{role}-{lane}",
        id=f"lane-{lane}-{role}-0",
        role=role,
        lane=lane,
        revision=REVISION,
        address=f"{role}-{lane}:50051",
        serves=True,
        drains=False,
    )
    return replace(made, **changes)


def said(**changes: Any) -> WorkerSignals:
    made = WorkerSignals(
        role=Role.DECODE,
        boot_id=1,
        epoch=1,
        uid_fingerprint=fingerprint(UID),
        revision_fingerprint=fingerprint(REVISION),
        config_generation=3,
    )
    return replace(made, **changes)


ECHOES: dict[str, tuple[WorkerSignals | None, Echo | None]] = {
    "what it has applied": (said(config_step=2), Echo(3, 2)),
    "a refusal, whose words GetState has": (
        said(flags=Flags.CONFIG_REJECTED),
        Echo(3, 0, "it refuses the configuration"),
    ),
    "a fall back to plain decoding": (said(flags=Flags.SPECULATION_FALLBACK), Echo(3, speculation_fallback=True)),
    "nothing, when it is silent": (None, None),
    "nothing, when a worker of another pair had its name": (said(uid_fingerprint=1), None),
    "nothing, when its predecessor of another revision still speaks": (said(revision_fingerprint=1), None),
}


@pytest.mark.parametrize(("signals", "echo"), ECHOES.values(), ids=ECHOES)
def test_a_workers_signals_say(signals: WorkerSignals | None, echo: Echo | None) -> None:
    assert echo_of(signals, worker(), UID) == echo


def pod(name: str, role: str, ip: str, *, ready: bool = True, **metadata: Any) -> Body:
    labels = {naming.PAIR: "llama", naming.MANAGED_BY: naming.MANAGER, naming.ROLE: role}
    status: Body = {
        "podIP": ip,
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        "containerStatuses": [{"name": "worker", "ready": ready, "state": {"running": {}}}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "llm", "uid": name, "labels": labels, **metadata},
        "spec": {"containers": [{"name": "worker"}]},
        "status": status,
    }


def test_the_members_are_the_workers_and_the_routers_that_are_ready() -> None:
    pods = [
        pod(f"llama-decode-0-0-{REVISION}", "decode", "10.0.0.1"),
        pod(f"llama-prefill-0-0-{REVISION}", "prefill", "fd00::1", annotations={naming.DRAIN: "ScaledDown"}),
        pod("llama-router-b", "router", "10.0.0.9"),
        pod("llama-router-a", "router", "10.0.0.8"),
        pod("llama-router-starts", "router", "10.0.0.7", ready=False),
        pod("llama-router-goes", "router", "10.0.0.6", deletionTimestamp="2026-01-01T00:00:00Z"),
    ]
    found = members(UID, observe("llama", UID, pods), pods)
    assert found.routers == (("llama-router-a", "10.0.0.8:50051"), ("llama-router-b", "10.0.0.9:50051"))
    assert [(each.id, each.address, each.serves, each.drains) for each in found.workers] == [
        ("lane-0-decode-0", "10.0.0.1:50051", True, False),
        ("lane-0-prefill-0", "[fd00::1]:50051", False, True),
    ]


class Peers:
    """Workers and routers that answer as told; `asked` keeps who was, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.echoes: dict[str, Echo] = {}
        self.running: dict[str, list[int | None]] = {}

    async def worker(self, address: str, pair_uid: str, worker_id: str) -> Echo | None:
        self.asked.append(address)
        return self.echoes.get(address)

    async def router(self, address: str, pair_uid: str) -> Echo | None:
        self.asked.append(address)
        return self.echoes.get(address)

    async def drain(self, address: str, pair_uid: str, worker_id: str, seconds: float) -> int | None:
        self.asked.append(address)
        left = self.running.get(address, [0])
        return left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drains, "HANDOVER_SECONDS", 0.0)
    monkeypatch.setattr(drains, "_RETRY_SECONDS", 0.0)


async def drained(peers: Peers, *workers: Worker) -> frozenset[str]:
    asked: list[Key] = []
    made = Drains(peers, asked.append)  # type: ignore[arg-type]
    made.want(KEY, Members(UID, workers))
    made.want(KEY, Members(UID, workers))
    await until(lambda: not made._running)
    assert len(asked) == len(made.finished(KEY))
    return made.finished(KEY)


@pytest.mark.usefixtures("no_waiting")
async def test_of_a_lane_the_prefills_are_asked_before_the_decodes_and_each_until_it_runs_nothing() -> None:
    peers = Peers()
    peers.running = {"prefill-0:50051": [2, 1, 0]}
    found = await drained(peers, worker("decode", drains=True), worker("prefill", drains=True))
    assert peers.asked == ["prefill-0:50051"] * 3 + ["decode-0:50051"]
    assert found == {"prefill-0", "decode-0"}


@pytest.mark.usefixtures("no_waiting")
async def test_a_prefill_that_does_not_answer_holds_its_decodes_up_for_a_while_only() -> None:
    peers = Peers()
    peers.running = {"prefill-0:50051": [None]}
    found = await drained(peers, worker("decode", drains=True), worker("prefill", drains=True))
    assert peers.asked == ["prefill-0:50051"] * drains.PATIENCE + ["decode-0:50051"]
    assert found == {"decode-0"}


async def test_of_a_pair_that_is_paused_nobody_is_asked_to_drain() -> None:
    peers = Peers()
    made = Drains(peers, lambda _: None)  # type: ignore[arg-type]
    made.want(KEY, Members(UID, (worker(drains=True),)), paused=True)
    await asyncio.sleep(0.02)
    assert peers.asked == []


@pytest.mark.usefixtures("no_waiting")
async def test_lanes_do_not_wait_for_each_other_and_pods_without_a_mark_are_not_asked() -> None:
    peers = Peers()
    found = await drained(peers, worker("decode", 1, drains=True), worker("prefill", 0), worker("decode", 0))
    assert (peers.asked, found) == (["decode-1:50051"], {"decode-1"})


RECORD = GoodputMinute(minute=1, config=ConfigId(uid=UID, generation=2))


class Link:
    """Redis as the fleet uses it. `away` makes every exchange fail."""

    def __init__(self) -> None:
        self.away = False
        self.written: dict[Key, bytes] = {}
        self.published: dict[tuple[Key, str], WorkerSignals] = {}
        self.words: dict[Key, LaneWord] = {}

    async def write(self, configs: dict[Key, bytes]) -> None:
        self._up()
        self.written |= configs

    async def missing(self, wanted: Sequence[Key]) -> list[Key]:
        self._up()
        return [key for key in wanted if key not in self.written]

    async def lanes(self) -> dict[Key, LaneWord]:
        self._up()
        return self.words

    async def signals(self, workers: Sequence[tuple[Key, str]]) -> dict[tuple[Key, str], WorkerSignals]:
        self._up()
        return {each: self.published[each] for each in workers if each in self.published}

    async def goodput(self, newest: dict[Key, int]) -> dict[Key, dict[str, list[GoodputMinute]]]:
        self._up()
        return {key: {"a": [RECORD]} for key in newest}

    async def close(self) -> None:
        pass

    def _up(self) -> None:
        if self.away:
            raise RedisAway("refused")


class Bench:
    def __init__(self) -> None:
        self.store, self.fence, self.link, self.peers = Store(), Fence(), Link(), Peers()
        self.asked: list[Key] = []
        self.fleet = ProcessFleet(
            None,
            (),
            None,
            self.fence,
            self.store,
            ask=self.asked.append,
            metrics=OperatorMetrics(),
            rng=Random(1),
        )
        self.fleet._link = self.link  # type: ignore[assignment]
        self.fleet._peers = self.peers  # type: ignore[assignment]
        self.fence.raise_until(self.fence.now() + 3_600)
        self.pair: Body = {"apiVersion": "streamserve.io/v1alpha1", "kind": "StreamPair"}
        self.pods = [
            pod(f"llama-decode-0-0-{REVISION}", "decode", "10.0.0.1"),
            pod("llama-router-a", "router", "10.0.0.8"),
        ]
        for each in self.pods:
            self.store.put(each)

    def decide(self, generation: int, *, paused: bool = False, remembered: int | None = None) -> None:
        metadata = {"name": "llama", "namespace": "llm", "uid": UID}
        self.store.put({**self.pair, "metadata": metadata, "spec": {"paused": paused}})
        config = None if paused else RuntimeConfig(id=ConfigId(uid=UID, generation=generation))
        seen = observe("llama", UID, self.pods)
        if remembered is not None:
            memory = Memory(RuntimeConfig(id=ConfigId(uid=UID, generation=remembered)), Settled())
            seen = replace(seen, memory=memory)
        self.fleet.decided(KEY, Decision(config=config), seen)

    def hold(self, generation: int) -> None:
        """A canary of this generation begins."""
        config = RuntimeConfig(id=ConfigId(uid=UID, generation=generation))
        memory = Memory(config, Holding("q", 1_800_000_000.0, config.id.order))
        self.fleet.decided(KEY, Decision(config=config, memory=memory), observe("llama", UID, self.pods))

    async def until_heard(self, wanted: dict[str, tuple[int, str]]) -> None:
        """Until every pod's echo has this generation and error."""

        def heard() -> dict[str, tuple[int, str]]:
            return {name: (echo.generation, echo.error) for name, echo in self.fleet.heard(KEY).echoes.items()}

        await until(lambda: heard() == wanted)


WORKER, ROUTER = f"llama-decode-0-0-{REVISION}", "llama-router-a"


async def test_workers_are_heard_in_redis_and_routers_asked_until_all_have_applied_it() -> None:
    bench = Bench()
    bench.link.published[KEY, "lane-0-decode-0"] = said(config_generation=2)
    bench.peers.echoes["10.0.0.8:50051"] = Echo(2)
    bench.decide(2)
    await bench.until_heard({WORKER: (2, ""), ROUTER: (2, "")})
    assert bench.peers.asked == ["10.0.0.8:50051"], "a worker that published was not asked"
    assert bench.fleet.heard(KEY).asked, "all have answered: nothing is waited for"
    assert KEY in bench.asked
    await bench.fleet.close()


async def test_what_routers_and_workers_said_in_an_earlier_term_is_forgotten_in_the_next() -> None:
    bench = Bench()
    bench.link.published[KEY, "lane-0-decode-0"] = said(config_generation=2)
    bench.peers.echoes["10.0.0.8:50051"] = Echo(2)
    bench.decide(2)
    bench.hold(2)
    await bench.until_heard({WORKER: (2, ""), ROUTER: (2, "")})
    await bench.fleet._evidence._read(bench.link)
    bench.fleet._take_lanes({KEY: LaneWord(lanes={"lane-0": LaneReport(state="READY")})})
    told = bench.fleet.heard(KEY)
    assert told.lanes is not None
    assert told.goodput is not None
    assert told.asked
    bench.fence.lower()
    assert bench.fleet.heard(KEY) == told, "it only stands by"
    bench.fence.raise_until(bench.fence.now() + 3_600)
    told = bench.fleet.heard(KEY)
    assert (told.lanes, told.echoes, told.goodput, told.asked) == (None, {}, None, False)
    await bench.fleet.close()


async def test_redis_that_stays_away_is_told_once_and_taken_back_at_once() -> None:
    bench, now = Bench(), 1_000.0
    bench.fleet._clock = lambda: now
    bench.decide(2)
    bench.asked.clear()

    def look(error: Exception | None) -> tuple[str, int]:
        """(what a pair hears, how often it was asked to decide anew) after one look at Redis."""
        bench.asked.clear()
        if error is None:
            bench.fleet._is_back()
        else:
            bench.fleet._is_away(error)
        bench.fleet._take_lanes(None if error else {})
        return bench.fleet.heard(KEY).redis_away, len(bench.asked)

    assert look(ConnectionError()) == ("", 0), "one that starts anew is away for a moment, too"
    now += AWAY_SECONDS
    assert look(ConnectionError()) == ("ConnectionError", 1)
    assert look(ConnectionError()) == ("ConnectionError", 0)
    assert look(None) == ("", 1)
    now += AWAY_SECONDS
    assert look(ConnectionError()) == ("", 0), "each absence has its own patience"
    await bench.fleet.close()


async def test_without_a_redis_the_pairs_hear_so() -> None:
    bench = Bench()
    bench.fleet._link = None
    assert bench.fleet.heard(KEY).redis_away == "the operator was given none"
    await bench.fleet.close()


async def test_a_router_that_has_not_answered_counts_with_generation_0() -> None:
    bench = Bench()
    bench.decide(2)
    assert bench.fleet.heard(KEY).echoes == {ROUTER: Echo(0)}
    await bench.fleet.close()


async def test_until_all_have_answered_or_have_had_their_time_nobody_counts_as_asked() -> None:
    bench = Bench()
    assert not bench.fleet.heard(KEY).asked
    bench.decide(2)
    assert not bench.fleet.heard(KEY).asked
    began = asyncio.get_running_loop().time()
    await until(lambda: bench.fleet.heard(KEY).asked)
    assert asyncio.get_running_loop().time() - began >= _DIRECTLY_AFTER_SECONDS, "the router never answered"
    assert "10.0.0.1:50051" in bench.peers.asked, "nor did the worker publish, so it was asked as well"
    await bench.fleet.close()


async def test_while_redis_is_away_workers_are_asked_themselves() -> None:
    bench = Bench()
    bench.link.away = True
    bench.peers.echoes = {"10.0.0.1:50051": Echo(2), "10.0.0.8:50051": Echo(2)}
    bench.decide(2)
    await bench.until_heard({WORKER: (2, ""), ROUTER: (2, "")})
    await bench.fleet.close()


async def test_one_that_refuses_is_asked_for_its_words() -> None:
    bench = Bench()
    bench.link.published[KEY, "lane-0-decode-0"] = said(config_generation=1, flags=Flags.CONFIG_REJECTED)
    bench.peers.echoes = {"10.0.0.1:50051": Echo(1, 0, "max_depth 9 is above 6"), "10.0.0.8:50051": Echo(2)}
    bench.decide(2)
    await bench.until_heard({WORKER: (1, "max_depth 9 is above 6"), ROUTER: (2, "")})
    await bench.fleet.close()


async def test_a_worker_that_falls_back_or_starts_anew_later_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("LANES_SECONDS", "REFRESH_SECONDS"):
        monkeypatch.setattr(f"streamserve.operator.edge.fleet.{setting}", 0.01)
    bench = Bench()
    bench.peers.echoes["10.0.0.8:50051"] = Echo(2)
    bench.link.published[KEY, "lane-0-decode-0"] = said(config_generation=2)
    running = asyncio.create_task(bench.fleet.run())
    bench.decide(2)
    await bench.until_heard({WORKER: (2, ""), ROUTER: (2, "")})
    bench.link.published[KEY, "lane-0-decode-0"] = said(config_generation=2, flags=Flags.SPECULATION_FALLBACK)
    await until(lambda: bench.fleet.heard(KEY).echoes[WORKER].speculation_fallback)
    bench.link.published[KEY, "lane-0-decode-0"] = said(config_generation=1)
    await until(lambda: bench.fleet.heard(KEY).echoes[WORKER].generation == 1)
    running.cancel()
    await bench.fleet.close()


async def test_what_an_earlier_term_wanted_is_not_written_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another leader may have written a higher step meanwhile; what is right now is decided anew first."""
    monkeypatch.setattr("streamserve.operator.edge.fleet.CHECK_SECONDS", 0.01)
    bench = Bench()
    bench.fleet._link = None
    bench.decide(2)
    bench.fence.lower()
    bench.fence.raise_until(bench.fence.now() + 3_600)
    bench.fleet._link = bench.link  # type: ignore[assignment]
    running = asyncio.create_task(bench.fleet.run())
    await asyncio.sleep(0.1)
    assert bench.link.written == {}
    bench.decide(2)
    await until(lambda: KEY in bench.link.written)
    running.cancel()
    await bench.fleet.close()


async def test_a_configuration_is_written_when_redis_is_back_and_again_when_it_was_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamserve.operator.edge.fleet.CHECK_SECONDS", 0.02)
    bench = Bench()
    bench.link.away = True
    running = asyncio.create_task(bench.fleet.run())
    bench.decide(2)
    await asyncio.sleep(0.1)
    assert bench.link.written == {}
    bench.link.away = False
    await until(lambda: KEY in bench.link.written)
    first = bench.link.written.pop(KEY)
    await until(lambda: bench.link.written.get(KEY) == first)
    bench.decide(1)
    await asyncio.sleep(0.1)
    assert bench.link.written[KEY] == first, "never an earlier one"
    running.cancel()
    await bench.fleet.close()


async def test_a_pair_that_is_paused_is_left_alone_until_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamserve.operator.edge.fleet.CHECK_SECONDS", 0.02)
    bench = Bench()
    running = asyncio.create_task(bench.fleet.run())
    bench.decide(2)
    await until(lambda: KEY in bench.link.written)
    bench.decide(2, paused=True)
    bench.link.written.clear()
    await asyncio.sleep(0.1)
    assert bench.link.written == {}
    bench.decide(2)
    await until(lambda: KEY in bench.link.written)
    running.cancel()
    await bench.fleet.close()


async def test_of_a_pair_that_is_paused_it_is_asked_who_has_applied_what_is_in_force() -> None:
    """Also by an operator that starts, and that would else repeat for ever what the one before it had said."""
    bench = Bench()
    bench.peers.echoes["10.0.0.8:50051"] = Echo(2)
    bench.link.published[KEY, "lane-0-decode-0"] = said(config_generation=2)
    bench.decide(3, paused=True, remembered=2)
    await bench.until_heard({WORKER: (2, ""), ROUTER: (2, "")})
    assert bench.fleet.heard(KEY).asked
    assert bench.link.written == {}
    await bench.fleet.close()


async def test_a_process_that_does_not_lead_writes_no_configuration_and_asks_nobody() -> None:
    bench = Bench()
    bench.fence.lower()
    running = asyncio.create_task(bench.fleet.run())
    bench.decide(2)
    await asyncio.sleep(0.2)
    assert (bench.link.written, bench.peers.asked) == ({}, [])
    running.cancel()
    await bench.fleet.close()


async def test_lanes_are_unknown_while_redis_is_away_and_a_pair_is_looked_at_when_they_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamserve.operator.edge.fleet.LANES_SECONDS", 0.01)
    bench = Bench()
    bench.decide(1)
    bench.link.words[KEY] = LaneWord(lanes={"lane-0": LaneReport(state="READY")})
    running = asyncio.create_task(bench.fleet.run())
    await until(lambda: bench.fleet.heard(KEY).lanes is not None)
    assert KEY in bench.asked
    bench.link.away = True
    await until(lambda: bench.fleet.heard(KEY).lanes is None)
    running.cancel()
    await bench.fleet.close()


@pytest.mark.parametrize("what", ["lanes", "missing", "goodput"])
async def test_what_a_loop_stumbles_over_ends_neither_it_nor_the_others(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fleet.LANES_SECONDS", "fleet.CHECK_SECONDS", "fleet.DEFECT_SECONDS", "evidence.READ_SECONDS"):
        monkeypatch.setattr(f"streamserve.operator.edge.{name}", 0.01)
    bench, stumbles = Bench(), [True]
    sound = getattr(bench.link, what)

    async def stumble(*arguments: Any) -> Any:
        if stumbles[0]:
            raise KeyError("nobody thought of that")
        return await sound(*arguments)

    bench.link.words[KEY] = LaneWord(lanes={"lane-0": LaneReport(state="READY")})
    running = asyncio.create_task(bench.fleet.run())
    bench.decide(2)
    bench.hold(2)

    def all_is_heard() -> bool:
        heard = bench.fleet.heard(KEY)
        return heard.lanes is not None and heard.goodput is not None and KEY in bench.link.written

    await until(all_is_heard)
    monkeypatch.setattr(bench.link, what, stumble)
    if what == "lanes":
        await until(lambda: bench.fleet.heard(KEY).lanes is None)
    else:
        await asyncio.sleep(0.1)
    stumbles[0] = False
    bench.link.written.clear()
    await until(all_is_heard)
    assert not running.done()
    running.cancel()
    await bench.fleet.close()


async def test_the_routers_records_are_heard_while_a_canary_is_held_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamserve.operator.edge.evidence.READ_SECONDS", 0.01)
    bench = Bench()
    running = asyncio.create_task(bench.fleet.run())
    bench.decide(2)
    bench.hold(2)
    assert bench.fleet.heard(KEY).goodput is None
    await until(lambda: bench.fleet.heard(KEY).goodput == {"a": (RECORD,)})
    config = RuntimeConfig(id=ConfigId(uid=UID, generation=2))
    settled = Decision(config=config, memory=Memory(config, Settled()))
    bench.fleet.decided(KEY, settled, observe("llama", UID, bench.pods))
    await asyncio.sleep(0.05)
    assert bench.fleet.heard(KEY).goodput is None
    running.cancel()
    await bench.fleet.close()
