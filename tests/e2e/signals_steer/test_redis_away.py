"""Redis stands still, or is gone, for 30 s: no request notices. Then it is back, or back and empty: whole within 5 s.

Two fleets go through it at once, each under a steady load of its own: one whose Redis is stopped with SIGSTOP, so
that connections open but nothing answers, and whose router knows its workers from the registry alone; one whose Redis
is killed and comes back without a single key. Halfway a new configuration is written: it arrives by the file, and
Redis gets it from its writer (that of `streamserve up`) when it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import grpc
import pytest
import redis
from tests.support import calls
from tests.support.calls import generate, request
from tests.support.processes import LocalFleet, default_config, wait_until
from tests.support.steady_load import Sent, SteadyLoad, behind_the_back, errors, share

from streamserve.cli.up.push import ConfigPush
from streamserve.contract import lane_word, runtime_config, signals
from streamserve.contract.runtime_config import RoutingConfig, SpeculationConfig
from streamserve.v1 import admin_pb2

AWAY_SECONDS = 30.0
WHOLE_SECONDS = 5.0
SERVES_SECONDS = 5.0
PER_SECOND = 12.0
WARM_SECONDS = 1.0
# A request takes about 0.3 s; one that waited for Redis would take its timeout of 1 s more.
SLOW_SECONDS = 1.3
TICK_SECONDS = 0.02
STRANGERS, LOADED_SECONDS = 16, 3.0
# A worker that is silent is asked after 0.75 s, every 0.3 s; its answer and the pick have what is left.
STEER_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Away:
    """How Redis goes, and how it comes back."""

    go: Callable[[LocalFleet], None]
    come_back: Callable[[LocalFleet], object]


AWAYS = {
    "stands still": Away(lambda fleet: fleet.redis.process.freeze(), lambda fleet: fleet.redis.process.thaw()),
    "was killed and is empty": Away(lambda fleet: fleet.redis.kill(), lambda fleet: fleet.redis.start()),
}


@dataclass(frozen=True, slots=True)
class Outage:
    """What a client and an observer saw."""

    before: list[Sent]
    during: list[Sent]
    after: list[Sent]
    steered: list[Sent]
    stalled_seconds: float
    noticed: bool
    applied_while_away: bool
    whole_after_seconds: float
    missing: str


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalFleet]]:
    def alike(name: str, *, with_fleet_file: bool) -> LocalFleet:
        return LocalFleet(
            tmp_path_factory.mktemp(name),
            config=default_config("pair-uid-1").model_copy(update={"speculation": SpeculationConfig()}),
            engine_arguments={"simulator-slowdown": "2"},
            with_fleet_file=with_fleet_file,
        )

    stopped, killed = alike("stopped", with_fleet_file=False), alike("killed", with_fleet_file=True)
    with stopped, killed:
        yield dict(zip(AWAYS, (stopped, killed), strict=True))


@pytest.fixture(scope="module")
def outages(fleets: dict[str, LocalFleet]) -> dict[str, Outage]:
    async def both() -> list[Outage]:
        return await asyncio.gather(*(_outage(fleets[name], away) for name, away in AWAYS.items()))

    return dict(zip(AWAYS, asyncio.run(both()), strict=True))


@asynccontextmanager
async def writer(fleet: LocalFleet) -> AsyncIterator[ConfigPush]:
    """The one writer of the configuration, as `streamserve up` runs it."""
    push = ConfigPush(fleet.keys, fleet.redis.url, fleet.config_file, print)
    await push.write(fleet.config)
    keeping = asyncio.create_task(push.keep())
    try:
        yield push
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await push.close()


@asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """How much later than asked for this process woke up, in seconds: what the machine itself holds up."""
    late = [0.0]

    async def tick() -> None:
        while True:
            asked = time.monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late.append(time.monotonic() - asked)

    ticking = asyncio.create_task(tick())
    try:
        yield late
    finally:
        ticking.cancel()


async def _outage(fleet: LocalFleet, away: Away) -> Outage:
    async with (
        stalls() as late,
        writer(fleet) as push,
        SteadyLoad(fleet.grpc, per_second=PER_SECOND, timeout=60) as load,
    ):
        await asyncio.sleep(WARM_SECONDS)
        gone_at = time.monotonic()
        await asyncio.to_thread(away.go, fleet)
        await asyncio.sleep(AWAY_SECONDS / 2)
        noticed = not (await asyncio.to_thread(calls.get_fleet, fleet.grpc)).redis_connected
        async with behind_the_back(fleet["lane-0-decode-0"], requests=STRANGERS) as accepted_at:
            await asyncio.sleep(LOADED_SECONDS)
            unloaded_at = time.monotonic()
        routing = RoutingConfig(signal_trust_ms=2_000)
        following = fleet.config.id.model_copy(update={"generation": fleet.config.id.generation + 1})
        fleet.config = fleet.config.model_copy(update={"id": following, "routing": routing})
        await push.write(fleet.config)
        await asyncio.sleep(max(0.0, gone_at + AWAY_SECONDS - time.monotonic()))
        applied = await asyncio.to_thread(_everyone_applied, fleet)
        back_at = time.monotonic()
        await asyncio.to_thread(away.come_back, fleet)
        missing = await _until_whole(fleet, back_at + 2 * WHOLE_SECONDS)
        whole_after = time.monotonic() - back_at
        await asyncio.sleep(WARM_SECONDS)
        ended_at = time.monotonic()
    return Outage(
        before=load.between(0.0, gone_at),
        during=load.between(gone_at, back_at),
        steered=load.between(accepted_at + STEER_SECONDS, unloaded_at),
        after=load.between(back_at, ended_at),
        stalled_seconds=max(late),
        noticed=noticed,
        applied_while_away=applied,
        whole_after_seconds=whole_after,
        missing=missing,
    )


def _everyone_applied(fleet: LocalFleet) -> bool:
    """By the router's word and by the signals that it has, none of them from Redis."""
    view = calls.get_fleet(fleet.grpc)
    packed = [worker.signals for lane in view.lanes for worker in lane.workers]
    generations = {signals.decode(one).config_generation for one in packed}
    return generations == {fleet.config.id.generation} and calls.get_config(fleet.grpc).generation in generations


async def _until_whole(fleet: LocalFleet, end: float) -> str:
    """Empty once nothing is missing, else what still is at the end."""
    missing = "not asked yet"
    with suppress(TimeoutError):
        async with asyncio.timeout_at(end):
            while missing := await asyncio.to_thread(what_is_missing, fleet):  # noqa: ASYNC110 - others' processes
                await asyncio.sleep(0.05)
    return missing


def what_is_missing(fleet: LocalFleet) -> str:
    """The first thing that a whole fleet has and this one has not: lanes that serve, and every key in Redis."""
    view = calls.get_fleet(fleet.grpc)
    if not view.redis_connected:
        return "the router is not connected"
    if [lane.state for lane in view.lanes] != [admin_pb2.LANE_STATE_READY] * len(fleet.lanes):
        return f"lanes are not ready: {view.lanes}"
    keys, names = fleet.keys, [worker.name for worker in fleet.workers]
    try:
        with fleet.redis.client() as client:
            index = {name.decode() for name in client.zrange(keys.worker_index, 0, -1)}
            endpoints = client.mget([keys.worker_endpoint(name) for name in names])
            published = client.mget([keys.worker_signals(name) for name in names])
            config = client.get(keys.config)
            lanes = [client.get(key) for key in client.scan_iter(match=f"{keys.root}/router/*/lanes")]
    except redis.RedisError as error:
        return f"Redis does not answer: {error}"
    if index != set(names) or None in endpoints or None in published:
        return f"workers are not listed: index {sorted(index)}, endpoints {endpoints}, signals {published}"
    if config is None or runtime_config.decode(config).id != fleet.config.id:
        return f"the configuration is not in Redis: {config!r}"
    states = {row.state for value in lanes if value for row in lane_word.decode(value).lanes.values()}
    return "" if states == {"READY"} else f"the router's lanes are not in Redis: {lanes}"


@pytest.mark.parametrize("how", AWAYS)
def test_no_request_fails_while_redis(how: str, outages: dict[str, Outage]) -> None:
    outage = outages[how]
    assert outage.noticed, "Redis was never away"
    requests = outage.before + outage.during + outage.after
    assert errors(requests) == []
    assert len(outage.during) >= 0.8 * PER_SECOND * AWAY_SECONDS
    slowest = max(sent.seconds or 0.0 for sent in requests)
    stalled = f"the machine stood still for up to {outage.stalled_seconds:.2f} s"
    print(f"{len(outage.during)} requests without Redis, the slowest of all took {slowest:.2f} s; {stalled}")
    assert slowest < SLOW_SECONDS + outage.stalled_seconds, f"a request waited for Redis ({slowest:.2f} s); {stalled}"
    assert 0.2 <= share("lane-1", outage.during) <= 0.8, "without Redis one lane was forgotten"


@pytest.mark.parametrize("how", AWAYS)
def test_the_workers_own_word_steers_while_redis(how: str, outages: dict[str, Outage]) -> None:
    """In band and by GetState the router learns of load that it did not send, only not within 300 ms."""
    assert share("lane-1", outages[how].steered) >= 0.9


@pytest.mark.parametrize("how", AWAYS)
def test_a_setting_arrives_by_its_file_while_redis(how: str, outages: dict[str, Outage]) -> None:
    assert outages[how].applied_while_away


@pytest.mark.parametrize("how", AWAYS)
def test_the_fleet_is_whole_within_5_s_after_redis(how: str, outages: dict[str, Outage]) -> None:
    outage = outages[how]
    print(f"whole {outage.whole_after_seconds:.2f} s after Redis was back")
    assert outage.missing == ""
    assert outage.whole_after_seconds <= WHOLE_SECONDS


async def test_a_router_that_starts_without_redis_serves_within_5_s_and_heals_when_it_is_there(
    fleets: dict[str, LocalFleet],
) -> None:
    """It finds its workers in the fleet file and learns the rest from themselves (GetState)."""
    fleet = fleets["was killed and is empty"]
    fleet.redis.kill()
    fleet.router.kill()
    started_at = time.monotonic()
    fleet.router.start().wait_ready(SERVES_SECONDS)
    answer = generate(fleet.grpc, request(max_tokens=8, ignore_eos=True), timeout=SERVES_SECONDS)
    while answer.error is not None and time.monotonic() < started_at + SERVES_SECONDS:
        assert answer.error.code is grpc.StatusCode.UNAVAILABLE, answer.error
        await asyncio.sleep(0.05)
        answer = generate(fleet.grpc, request(max_tokens=8, ignore_eos=True), timeout=SERVES_SECONDS)
    served_after = time.monotonic() - started_at
    assert answer.error is None and len(answer.token_ids) == 8
    assert answer.route.prefill_mode == "remote", "it serves, but on a detour"
    assert served_after <= SERVES_SECONDS
    wait_until(
        lambda: all(lane.state == admin_pb2.LANE_STATE_READY for lane in calls.get_fleet(fleet.grpc).lanes),
        seconds=SERVES_SECONDS,
        what="both lanes serve without Redis",
    )
    async with writer(fleet):
        back_at = time.monotonic()
        fleet.redis.start()
        assert await _until_whole(fleet, back_at + WHOLE_SECONDS) == ""
    print(f"served {served_after:.2f} s after its start, whole {time.monotonic() - back_at:.2f} s after Redis came")
