"""A worker's life: signals in Redis, configuration, drain, slow readers, and every way to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lane import PAIR, UID, Lane, decode_request, prefill_request, stub
from processes import Process, RedisServer, free_port, wait_until

from streamserve.contract import signals
from streamserve.contract.errors import SlowConsumer, WorkerLost
from streamserve.contract.identity import fingerprint
from streamserve.contract.signals import Flags, Role
from streamserve.runtime import grpc as runtime_grpc
from streamserve.runtime.status import from_rpc_error
from streamserve.v1 import worker_pb2, worker_pb2_grpc


async def health(process: Process) -> int:
    async with runtime_grpc.channel(process.ready["grpc"]) as channel:
        asked = health_pb2.HealthCheckRequest(service="streamserve.v1.WorkerService")
        return (await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=2)).status  # type: ignore[no-any-return]


def test_signals_endpoint_and_index_are_in_redis_and_expire(lane: Lane) -> None:
    name = "lane-0-decode-0"
    with lane.redis.client() as client:
        seen = [wait_until(lambda: lane.signals("decode"), seconds=3, what="signals")]
        end = time.monotonic() + 1.2
        while time.monotonic() < end:
            now = lane.signals("decode")
            assert now is not None
            if now.epoch != seen[-1].epoch:
                seen.append(now)
            assert 0 < client.pttl(lane.keys.worker_signals(name)) <= 1_500
            time.sleep(0.02)
        assert 2 <= len(seen) <= 5, "an idle worker says so every half second, not more often"
        first = seen[0]
        assert (first.role, first.flags) == (Role.DECODE, Flags.NONE)
        assert (first.config_generation, first.config_step) == (1, 0)
        assert first.uid_fingerprint == fingerprint(UID)
        assert first.kv_blocks_total == 8_192
        endpoint = json.loads(client.get(lane.keys.worker_endpoint(name)) or b"{}")
        assert endpoint["address"] == lane.decode.ready["grpc"]
        assert endpoint["boot_id"] == first.boot_id
        assert endpoint["pair_uid"] == UID
        score = client.zscore(lane.keys.worker_index, name)
        assert score is not None
        assert abs(client.time()[0] - score / 1_000) < 3
        lane.decode.kill()
        wait_until(lambda: lane.signals("decode") is None, seconds=3, what="the signals of a dead worker expire")


async def test_signals_follow_the_load_within_a_tenth_of_a_second(lane: Lane) -> None:
    async with stub(lane.decode) as decode:
        stream = decode.Decode(decode_request(prefill_request(max_tokens=4_000, workload="code")), timeout=30)
        await stream.read()
        await asyncio.sleep(0.1)
        busy = lane.signals("decode")
        assert busy is not None
        assert busy.running_requests == 1
        assert busy.kv_blocks_used > 0
        stream.cancel()
        await asyncio.sleep(0.15)
        idle = lane.signals("decode")
        assert idle is not None
        assert (idle.running_requests, idle.waiting_requests, idle.kv_blocks_used) == (0, 0, 0)
        async for message in decode.Decode(decode_request(prefill_request(max_tokens=64, workload="code")), timeout=10):
            last = message
        learned = signals.decode(last.load.signals)
        assert learned.step_base_seconds > 0
        assert learned.positions


async def test_a_pushed_configuration_is_echoed_within_300_ms_and_bounds_the_depth(lane: Lane) -> None:
    async with stub(lane.decode) as decode:
        stream = decode.Decode(decode_request(prefill_request(max_tokens=8_000)), timeout=60)
        await stream.read()
        waits = []
        for step in range(10):
            wanted = lane.next_config(min_depth=0 if step % 2 else 6, max_depth=0 if step % 2 else 6)
            began = time.monotonic()
            lane.push(wanted)

            def echoed(generation: int = wanted.id.generation) -> bool:
                now = lane.signals("decode")
                return now is not None and now.config_generation == generation

            await asyncio.to_thread(
                wait_until, echoed, seconds=2, what=f"generation {wanted.id.generation}", every_seconds=0.005
            )
            waits.append(time.monotonic() - began)
        assert sorted(waits)[len(waits) // 2] <= 0.3, waits
        assert max(waits) <= 2.0, waits
        before = (await decode.GetState(worker_pb2.GetStateRequest(), timeout=2)).depth_histogram
        await asyncio.sleep(0.3)
        after = (await decode.GetState(worker_pb2.GetStateRequest(), timeout=2)).depth_histogram
        grown = [depth for depth, (old, new) in enumerate(zip(before, after, strict=True)) if new > old]
        assert grown == [0], "the last bounds were 0..0"
        stream.cancel()


def test_a_configuration_from_the_file_is_applied_and_a_bad_one_is_flagged_and_changes_nothing(lane: Lane) -> None:
    lane.write_config(lane.next_config(max_depth=3))

    def echoed(generation: int, flags: Flags) -> bool:
        now = lane.signals("decode")
        return now is not None and now.config_generation == generation and now.flags == flags

    wait_until(lambda: echoed(2, Flags.NONE), seconds=2, what="generation 2 from the file")
    lane.config_file.write_text('{"version": 1, "config": {"id": {"uid": "pair-uid-1"}}}')
    wait_until(lambda: echoed(2, Flags.CONFIG_REJECTED), seconds=2, what="the bad file is flagged")
    lane.push(lane.next_config(max_depth=9))
    time.sleep(0.3)
    assert echoed(2, Flags.CONFIG_REJECTED), "deeper than built for"
    lane.write_config(lane.next_config(max_depth=4))
    wait_until(lambda: echoed(4, Flags.NONE), seconds=2, what="a good one clears the flag")


async def test_drain_refuses_new_work_lets_the_running_finish_and_takes_the_worker_out(lane: Lane) -> None:
    async with stub(lane.decode) as decode:
        stream = decode.Decode(decode_request(prefill_request(max_tokens=200)), timeout=30)
        await stream.read()
        short = await decode.Drain(worker_pb2.DrainRequest(), timeout=0.3)
        assert short.unfinished_requests == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await decode.Decode(decode_request(prefill_request()), timeout=5).read()
        error = from_rpc_error(caught.value)
        assert isinstance(error, WorkerLost)
        assert error.reason == "DRAINING"
        waiting = asyncio.create_task(_drained(decode))
        last = None
        while message := await stream.read():
            last = message
        assert last is not None
        assert last.usage.completion_tokens == 200
        assert (await waiting).unfinished_requests == 0
    assert await health(lane.decode) == health_pb2.HealthCheckResponse.NOT_SERVING
    now = lane.signals("decode")
    assert now is not None
    assert now.draining


async def _drained(decode: worker_pb2_grpc.WorkerServiceStub) -> worker_pb2.DrainResponse:
    answer: worker_pb2.DrainResponse = await decode.Drain(worker_pb2.DrainRequest(), timeout=10)
    return answer


async def test_sigterm_finishes_what_runs_deletes_the_keys_and_ends_with_0(lane: Lane) -> None:
    async with stub(lane.decode) as decode:
        stream = decode.Decode(decode_request(prefill_request(max_tokens=150)), timeout=30)
        await stream.read()
        lane.decode.signal(signal.SIGTERM)
        last = None
        while message := await stream.read():
            last = message
        assert last is not None
        assert last.usage.completion_tokens == 150
    status = await asyncio.to_thread(lambda: lane.decode.popen and lane.decode.popen.wait(10))
    assert status == 0, lane.decode.log
    assert lane.signals("decode") is None
    with lane.redis.client() as client:
        assert client.zscore(lane.keys.worker_index, "lane-0-decode-0") is None


async def test_serving_goes_on_while_redis_is_away_and_signals_return_with_it(lane: Lane) -> None:
    lane.redis.kill()
    async with stub(lane.prefill) as prefill, stub(lane.decode) as decode:
        for _ in range(5):
            ask = prefill_request(max_tokens=16)
            done = await prefill.Prefill(ask, timeout=5)
            messages = [m async for m in decode.Decode(decode_request(ask, done), timeout=5)]
            assert messages[-1].usage.completion_tokens == 16
    lane.redis.start()
    await asyncio.to_thread(wait_until, lambda: lane.signals("decode"), seconds=6, what="signals are back")


async def test_a_reader_who_reads_nothing_is_given_up_and_frees_the_engine(lane: Lane) -> None:
    lane.decode.kill()
    lane.fault("decode", '{"step_seconds": 0.001}')
    lane.decode = lane.worker("decode", ["--slow-reader-seconds", "1"])
    lane.decode.start().wait_ready()
    options = [("grpc.http2.lookahead_bytes", 1_024), ("grpc.http2.bdp_probe", 0)]
    async with (
        grpc.aio.insecure_channel(lane.decode.ready["grpc"], options=options) as channel,
        stub(lane.decode) as other,
    ):
        ask = decode_request(prefill_request(max_tokens=8_000))
        ask.sampling.logprobs = 20  # large messages fill the stream's window
        stream = worker_pb2_grpc.WorkerServiceStub(channel).Decode(ask, timeout=60)
        await stream.read()
        end = time.monotonic() + 15
        while (await other.GetState(worker_pb2.GetStateRequest(), timeout=2)).kv_blocks_used:
            assert time.monotonic() < end, "the blocks of a reader who does not read are still held"
            await asyncio.sleep(0.1)

        async def to_the_end() -> None:
            while await stream.read():
                pass

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await to_the_end()
        assert isinstance(from_rpc_error(caught.value), SlowConsumer)


async def test_an_answer_that_waits_for_its_reader_alone_is_no_work_of_the_worker(lane: Lane) -> None:
    lane.fault("decode", '{"step_seconds": 0.01}')
    request = decode_request(prefill_request(max_tokens=200))
    async with stub(lane.decode) as decode:

        async def load() -> tuple[int, int]:
            state = await decode.GetState(worker_pb2.GetStateRequest(), timeout=2)
            now = signals.decode(state.signals)
            return now.running_requests, now.waiting_requests

        stream = decode.DecodeMany(timeout=60)
        await stream.read()
        await stream.write(worker_pb2.DecodeManyRequest(start=worker_pb2.DecodeCall(call=1, request=request)))
        await stream.read()
        assert await load() == (1, 0)
        await stream.write(worker_pb2.DecodeManyRequest(pause=1))
        end = time.monotonic() + 15
        while await load() != (0, 0):
            assert time.monotonic() < end, "an answer that nobody reads is still work"
            await asyncio.sleep(0.05)
        await stream.write(worker_pb2.DecodeManyRequest(resume=1))
        last = worker_pb2.DecodePart()
        while not last.ended:
            *_, last = (await stream.read()).parts
        assert worker_pb2.DecodeResponse.FromString(last.response).usage.completion_tokens == 200


def test_a_worker_whose_parent_is_killed_ends_within_five_seconds(tmp_path: Path, redis_server: RedisServer) -> None:
    lane = Lane(tmp_path, redis_server)
    pid_file = tmp_path / "pid"
    parent_code = (
        "import subprocess, sys, pathlib, time\n"
        "child = subprocess.Popen(sys.argv[2:])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    parent = lane.worker(
        "decode", command=[sys.executable, "-c", parent_code, str(pid_file), sys.executable, "-m", "streamserve.worker"]
    )
    parent.start().wait_ready()
    child = int(pid_file.read_text())
    assert parent.popen is not None
    os.kill(parent.popen.pid, signal.SIGKILL)
    parent.popen.wait(5)
    wait_until(lambda: not Path(f"/proc/{child}").exists() or _zombie(child), seconds=5, what="the orphan ends")
    parent.kill()


def _zombie(pid: int) -> bool:
    return " Z " in Path(f"/proc/{pid}/stat").read_text()


def worker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamserve.worker", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "STREAMSERVE_REDIS_URL"},
    )


def test_what_cannot_start_ends_with_2_and_one_clear_line(tmp_path: Path, redis_server: RedisServer) -> None:
    # What the command line alone decides is in tests/unit/worker/test_options.py.
    lane = Lane(tmp_path, redis_server)
    who = ["--role", "decode", "--id", "w", "--lane", "lane-0", "--revision", "r", "--namespace", "local"]
    who += ["--pair", PAIR, "--pair-uid", UID, "--engine", "Simulator"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            "a missing configuration": (["--config", "/no/such"], "cannot read --config"),
            "a port in use": (
                ["--config", str(lane.config_file), "--grpc", f"127.0.0.1:{port}"],
                f"127.0.0.1:{port} is in use",
            ),
        }
        for name, (arguments, message) in cases.items():
            ended = worker(*who, *arguments)
            assert ended.returncode == 2, (name, ended.stderr)
            assert message in ended.stderr, (name, ended.stderr)
            assert "Traceback" not in ended.stderr, name


def test_a_redis_that_cannot_be_reached_is_only_a_warning(tmp_path: Path, redis_server: RedisServer) -> None:
    lane = Lane(tmp_path, redis_server, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    process = lane.worker("decode")
    try:
        process.start().wait_ready()
        wait_until(lambda: "redis is away" in process.log, seconds=5, what="a warning")
        assert process.terminate() == 0
    finally:
        process.kill()
