"""The fleet with real gRPC workers (fakes) and a real Redis: who serves, from when, and what takes it away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import grpc
import pytest

from streamserve.contract import lane_word
from streamserve.contract.errors import WorkerLost
from streamserve.contract.lane_word import LaneReport, LaneWord
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.contract.signals import Flags
from streamserve.router.flowguard.pick import pick
from streamserve.router.flowguard.request import RouteRequest
from streamserve.router.flowguard.view import LaneState, LaneView, WorkerView
from streamserve.router.fronts.checks import ModelLimits, limits_of
from streamserve.router.signals.fleet import Fleet, FleetSettings
from streamserve.runtime.redis_wire import RedisDown
from streamserve.v1 import worker_pb2

from .fakes import KEYS, UID, FakeWorker, Redis, redis_server, until, write_fleet

CONFIG = RuntimeConfig(id=ConfigId(uid=UID, generation=1))
REQUEST = RouteRequest(prompt_tokens=20, max_tokens=8)


@asynccontextmanager
async def workers(*lanes: str) -> AsyncIterator[dict[str, FakeWorker]]:
    """One prefill and one decode worker in each lane."""
    ids = [f"{lane}-{role}-0" for lane in lanes or ("lane-0",) for role in ("prefill", "decode")]
    made = {worker_id: FakeWorker(worker_id) for worker_id in ids}
    for worker in made.values():
        await worker.start()
    try:
        yield made
    finally:
        for worker in made.values():
            await worker.die()


@asynccontextmanager
async def fleet_of(
    tmp_path: Path, made: dict[str, FakeWorker], *, redis_url: str | None = None, file: bool = True
) -> AsyncIterator[Fleet]:
    path = tmp_path / "fleet.json"
    if file:
        write_fleet(path, list(made.values()))
    fleet = Fleet(
        FleetSettings(
            keyspace=KEYS,
            pair_uid=UID,
            router_id=7,
            redis_url=redis_url,
            fleet_file=path if file else None,
        ),
        rng=Random(1),
    )
    await fleet.start()
    try:
        yield fleet
    finally:
        await fleet.stop()
        assert not fleet.failed.is_set()


@asynccontextmanager
async def publishing(redis: Redis, made: dict[str, FakeWorker]) -> AsyncIterator[None]:
    """Every worker says hello and reports each 100 ms, as long as Redis takes it."""

    async def run() -> None:
        while True:
            for worker in made.values():
                try:
                    await worker.publish(redis)
                except RedisDown:
                    break  # a worker goes on without Redis, and so does this one
            await asyncio.sleep(0.1)

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def lane(fleet: Fleet, name: str = "lane-0") -> LaneView:
    return next((lane for lane in fleet.view().lanes if lane.name == name), LaneView(name=name))


def seen(fleet: Fleet, worker_id: str) -> WorkerView:
    return next(worker for lane in fleet.view().lanes for worker in lane.workers if worker.id == worker_id)


async def test_a_router_that_starts_without_redis_serves_within_5_seconds(tmp_path: Path) -> None:
    async with workers("lane-0", "lane-1") as made, fleet_of(tmp_path, made, redis_url="redis://127.0.0.1:1") as fleet:
        await until(lambda: fleet.ready_lanes() == 2, seconds=5)
        assert not fleet.view().redis_connected
        decision = pick(REQUEST, fleet.view(), CONFIG, Random(1))
        booking = fleet.book(decision.decode_worker or "", tokens=28)
        request = worker_pb2.DecodeRequest(request_id="r", attempt=1, dispatch=booking.dispatch())
        request.sampling.max_tokens = 3
        client = fleet.client(decision.decode_worker or "")
        got = [chunk.message.first_token_index async for chunk in client.decode(request, timeout_seconds=5)]
        assert got == [0, 1, 2]
        booking.release()


async def test_silent_workers_are_asked_directly_so_that_their_signals_stay_young(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        for _ in range(15):
            await asyncio.sleep(0.1)
            view = fleet.view()
            assert all(view.age_seconds(worker) < 2.0 for lane in view.lanes for worker in lane.workers)


async def test_redis_alone_says_who_exists_and_lanes_are_published_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server(tmp_path) as redis:
        async with (
            workers() as made,
            publishing(redis, made),
            fleet_of(tmp_path, {}, redis_url=redis.url, file=False) as fleet,
        ):
            await until(lambda: fleet.ready_lanes() == 1)
            ready = {"lane-0": LaneReport(state="READY", revision="r1")}
            published = await published_word(redis, lambda word: word.lanes == ready)
            assert not published.settled, "it has just started: what it does not say is no judgement yet"
            monkeypatch.setattr("streamserve.router.lanes.PATIENCE_SECONDS", 0.1)
            await published_word(redis, lambda word: word.settled and word.lanes == ready)
            assert fleet.snapshot().redis_connected


async def published_word(redis: Redis, awaited: Callable[[LaneWord], bool]) -> LaneWord:
    for _ in range(300):
        value = await redis.command("GET", KEYS.router_lanes("00000007"))
        if value is not None and awaited(word := lane_word.decode(bytes(value))):
            return word
        await asyncio.sleep(0.01)
    raise AssertionError("the lanes were not published so")


async def test_redis_may_die_and_return_and_no_lane_notices(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        async with (
            workers() as made,
            publishing(redis, made),
            fleet_of(tmp_path, {}, redis_url=redis.url, file=False) as fleet,
        ):
            await until(lambda: fleet.ready_lanes() == 1)
            redis.kill()
            await until(lambda: not fleet.redis_connected)
            for _ in range(40):
                await asyncio.sleep(0.05)
                assert fleet.ready_lanes() == 1
                pick(REQUEST, fleet.view(), CONFIG, Random(1))
            redis.start()
            await until(lambda: fleet.redis_connected)
            assert fleet.ready_lanes() == 1


async def test_the_canary_decides_whether_a_lane_is_ready(tmp_path: Path) -> None:
    async with workers() as made:
        made["lane-0-decode-0"].moves_bytes = False
        async with fleet_of(tmp_path, made) as fleet:
            await until(lambda: lane(fleet).state is LaneState.FENCED)
            assert "no KV bytes came from lane-0-prefill-0" in lane(fleet).reason
            assert lane(fleet).degraded and fleet.ready_lanes() == 0
            made["lane-0-decode-0"].moves_bytes = True
            await until(lambda: fleet.ready_lanes() == 1)


async def test_the_decode_workers_own_counter_is_proof_when_the_request_cannot_tell(tmp_path: Path) -> None:
    async with workers() as made:
        made["lane-0-decode-0"].tells_usage = False
        async with fleet_of(tmp_path, made) as fleet:
            await until(lambda: fleet.ready_lanes() == 1)


async def test_a_canary_that_fails_at_the_decode_worker_is_aborted_on_both_sides(tmp_path: Path) -> None:
    async def refuse(context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.INTERNAL, "the engine is not well")

    async with workers() as made:
        made["lane-0-decode-0"].fault = refuse
        async with fleet_of(tmp_path, made) as fleet:
            await until(lambda: lane(fleet).state is LaneState.FENCED)
            assert made["lane-0-prefill-0"].calls[:2] == ["Prefill", "Abort"]
            assert "Abort" in made["lane-0-decode-0"].calls
            assert seen(fleet, "lane-0-prefill-0").own_requests == 0


@pytest.mark.parametrize("who", ["lane-0-prefill-0", "lane-0-decode-0"])
async def test_a_restart_of_either_side_fences_the_lane_until_a_new_canary_passed(tmp_path: Path, who: str) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        before = fleet.client(who)
        made["lane-0-decode-0"].moves_bytes = False
        await made[who].restart()
        fleet.on_load_report(who, made[who].says())
        assert lane(fleet).state is LaneState.FENCED and not lane(fleet).proven
        await until(lambda: "no KV bytes" in lane(fleet).reason)
        made["lane-0-decode-0"].moves_bytes = True
        await until(lambda: fleet.ready_lanes() == 1)
        assert fleet.client(who) is not before


async def test_a_worker_that_dies_is_suspect_at_once_then_out_and_back_when_it_answers(tmp_path: Path) -> None:
    async with workers("lane-0", "lane-1") as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 2)
        await made["lane-0-decode-0"].die()
        fleet.on_result("lane-0-decode-0", WorkerLost("the connection failed"))
        decision = pick(REQUEST, fleet.view(), CONFIG, Random(1))
        assert decision.lane == "lane-1"
        await until(lambda: lane(fleet).state is LaneState.FENCED)
        await made["lane-0-decode-0"].start(int(made["lane-0-decode-0"].address.rpartition(":")[2]))
        await until(lambda: fleet.ready_lanes() == 2)


async def test_a_worker_that_dies_idle_is_noticed_without_any_request(tmp_path: Path) -> None:
    async with workers("lane-0", "lane-1") as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 2)
        await made["lane-0-prefill-0"].die()
        await until(lambda: lane(fleet).state is LaneState.FENCED)
        assert "lane-0-prefill-0" in lane(fleet).reason


async def test_draining_takes_a_lane_out_and_its_reason_says_so(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        fleet.on_load_report("lane-0-decode-0", made["lane-0-decode-0"].says(flags=Flags.DRAINING))
        assert lane(fleet).state is LaneState.FENCED
        assert "lane-0-decode-0 drains" in lane(fleet).reason


async def test_bookings_count_until_the_worker_acknowledges_them(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        who = "lane-0-prefill-0"
        booking = fleet.book(who, tokens=500)
        assert (seen(fleet, who).booked_tokens, seen(fleet, who).own_requests) == (500, 1)
        request = worker_pb2.PrefillRequest(request_id="r", attempt=1, dispatch=booking.dispatch())
        await fleet.client(who).prefill(request, timeout_seconds=5)
        fleet.on_load_report(who, made[who].says())
        assert (seen(fleet, who).booked_tokens, seen(fleet, who).own_requests) == (0, 1)
        booking.release()
        booking.release()
        assert seen(fleet, who).own_requests == 0


async def test_nobody_books_more_than_the_models_length(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        fleet.book("lane-0-decode-0", tokens=500_000)
        assert seen(fleet, "lane-0-decode-0").booked_tokens == 2_048


async def test_what_a_worker_says_of_its_model_is_what_the_fronts_check(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        assert limits_of(fleet.view()) == ModelLimits(max_model_tokens=2_048, vocabulary_size=4_096)


async def test_who_waits_for_a_change_is_woken_by_a_release(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        booking = fleet.book("lane-0-decode-0", tokens=1)
        waiting = asyncio.create_task(fleet.wait_change(5.0))
        await asyncio.sleep(0)
        booking.release()
        assert await waiting


async def test_garbage_signals_are_counted_and_change_nothing(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        fleet.on_load_report("lane-0-decode-0", b"\x00" * 200)
        fleet.on_load_report("nobody", b"x")
        assert fleet.quarantined == 1 and fleet.ready_lanes() == 1


async def test_the_file_adds_and_removes_workers_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    async with workers("lane-0", "lane-1") as made:
        first = {name: worker for name, worker in made.items() if worker.lane == "lane-0"}
        async with fleet_of(tmp_path, first) as fleet:
            path = tmp_path / "fleet.json"
            await until(lambda: fleet.ready_lanes() == 1)
            write_fleet(path, list(made.values()))
            await until(lambda: fleet.ready_lanes() == 2)
            path.write_text("{")
            await until(lambda: bool(fleet.file_error))
            assert fleet.ready_lanes() == 2
            for worker in first.values():
                await worker.die()
            write_fleet(path, [worker for worker in made.values() if worker.lane == "lane-1"])
            await until(lambda: [lane.name for lane in fleet.view().lanes] == ["lane-1"], seconds=15)
            with pytest.raises(WorkerLost):
                fleet.client("lane-0-decode-0")


async def test_the_snapshot_shows_lanes_workers_ages_and_health(tmp_path: Path) -> None:
    async with workers() as made, fleet_of(tmp_path, made) as fleet:
        await until(lambda: fleet.ready_lanes() == 1)
        (shown,) = fleet.snapshot().lanes
        assert [worker.worker.id for worker in shown.workers] == ["lane-0-prefill-0", "lane-0-decode-0"]
        assert all(
            worker.health == "ok" and worker.signals and worker.signal_age_ms < 5_000 for worker in shown.workers
        )
        assert made["lane-0-decode-0"].address == shown.workers[1].worker.address
