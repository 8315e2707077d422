"""The parts of the runtime that decide something: backoff, budgets, task ownership, status, config sources."""

import asyncio
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter

from streamserve.contract import runtime_config
from streamserve.contract.errors import ALL_ERRORS, InvalidRequest, NotReady, Overloaded, StreamServeError, WorkerLost
from streamserve.contract.keys import Keyspace
from streamserve.contract.runtime_config import ConfigId, RuntimeConfig
from streamserve.runtime import status
from streamserve.runtime.backoff import Backoff, RetryBudget
from streamserve.runtime.config_source import ConfigSource
from streamserve.runtime.errors import AddressInUse, SetupError
from streamserve.runtime.grpc import GrpcServer, channel, split_address
from streamserve.runtime.metrics import HealthServer
from streamserve.runtime.process import write_atomic
from streamserve.runtime.tasks import Tasks


def test_backoff_grows_to_its_cap_and_starts_again_after_reset() -> None:
    backoff = Backoff(0.5, 8.0, Random(1))
    waits = [backoff.next() for _ in range(50)]
    assert all(0.25 <= wait <= 8.0 for wait in waits)
    assert max(waits) > 4.0
    backoff.reset()
    assert backoff.next() <= 0.5


def test_a_retry_budget_allows_its_burst_and_then_a_tenth_of_the_successes() -> None:
    budget = RetryBudget(ratio=0.1, burst=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]


async def test_tasks_report_the_one_that_died_and_stop_the_rest() -> None:
    async def dies() -> None:
        raise ValueError("no")

    ended = asyncio.Event()

    async def lives() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    tasks = Tasks("test")
    tasks.spawn("lives", lives())
    tasks.spawn("dies", dies())
    await asyncio.wait_for(tasks.failed.wait(), 1)
    assert isinstance(tasks.error, ValueError)
    await tasks.stop()
    assert ended.is_set()
    assert len(tasks) == 0


@pytest.mark.parametrize("text", ["", "nohost", "host:", ":1", "host:70000", "host:x"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SetupError, match="host:port"):
        split_address(text)


async def test_an_error_crosses_the_wire_with_its_type_reason_field_and_retry_time() -> None:
    sent: list[StreamServeError] = [kind("told") for kind in ALL_ERRORS]
    sent.append(Overloaded("full", retry_after_seconds=1.5))
    sent.append(WorkerLost("gone", reason="DRAINING"))
    sent.append(InvalidRequest("bad", field="sampling.top_p"))

    async def fail(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await status.abort(context, sent[int(request)])

    server = GrpcServer("127.0.0.1:0", services=["test.Test"])
    handler = grpc.unary_unary_rpc_method_handler(fail)
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Fail": handler}),))
    address = await server.start()
    try:
        async with channel(address) as client:
            for at, error in enumerate(sent):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await client.unary_unary("/test.Test/Fail")(b"%d" % at, timeout=5)
                back = status.from_rpc_error(caught.value)
                assert (type(back), back.reason, back.message) == (type(error), error.reason, error.message)
                assert back.retry_after_seconds == error.retry_after_seconds
                assert back.field == error.field
    finally:
        await server.stop(0)


async def test_a_server_says_plainly_that_its_address_is_taken_and_health_follows_serving() -> None:
    first = GrpcServer("127.0.0.1:0", services=["a.B"])
    address = await first.start()
    try:
        with pytest.raises(AddressInUse, match=address):
            await GrpcServer(address, services=[]).start()
        async with channel(address) as client:
            stub = health_pb2_grpc.HealthStub(client)
            before = await stub.Check(health_pb2.HealthCheckRequest(service="a.B"), timeout=5)
            await first.set_serving(True)
            after = await stub.Check(health_pb2.HealthCheckRequest(service="a.B"), timeout=5)
        assert before.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert after.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        await first.stop(0)


def test_status_details_name_the_field_at_fault() -> None:
    packed = status.to_status(InvalidRequest("top_p is 2", field="sampling.top_p"))
    bad = error_details_pb2.BadRequest()
    assert packed.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "sampling.top_p"


@pytest.mark.parametrize("character", ["x", "ü", "漢", "\n"])
async def test_a_refusal_that_repeats_what_was_sent_keeps_its_code_and_its_details(character: str) -> None:
    """gRPC ends a call whose trailers are too long as RESOURCE_EXHAUSTED, which clients send again."""
    sent = character * 100_000

    async def refuse(request: bytes, context: Any) -> bytes:
        await status.abort(context, InvalidRequest(f"role {sent} is not known; use user", field=f"messages.{sent}"))

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(refuse)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.B", {"C": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with channel(f"127.0.0.1:{port}") as client:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await client.unary_unary("/a.B/C")(b"", timeout=5)
    finally:
        await server.stop(0)
    error = status.from_rpc_error(raised.value)
    assert isinstance(error, InvalidRequest)
    assert error.message.startswith(f"role {character}")
    assert error.message.endswith(f"{character} is not known; use user")
    assert (error.field or "").startswith("messages.")


async def test_health_server_answers_metrics_and_tells_why_it_is_not_ready() -> None:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc()
    server = HealthServer("127.0.0.1:0", registry=registry, live=lambda: None, ready=lambda: "still loading")
    address = await server.start()

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        assert "things_total 1.0" in (await asyncio.to_thread(get, "/metrics"))[1]
        assert await asyncio.to_thread(get, "/healthz") == (200, "ok\n")
        assert await asyncio.to_thread(get, "/readyz") == (503, "still loading\n")
        assert (await asyncio.to_thread(get, "/other"))[0] == 404
    finally:
        await server.stop()


async def test_a_task_shows_on_the_metrics_page_for_as_long_as_it_lives() -> None:
    registry = CollectorRegistry()
    HealthServer("127.0.0.1:0", registry=registry, live=lambda: None, ready=lambda: None)

    def alive() -> float | None:
        return registry.get_sample_value("streamserve_process_tasks")

    assert alive() == 1.0, "the test itself"
    task = asyncio.create_task(asyncio.sleep(60))
    assert alive() == 2.0
    task.cancel()
    await asyncio.wait([task])
    assert alive() == 1.0


def _config(generation: int, step: int = 0, uid: str = "u") -> RuntimeConfig:
    return RuntimeConfig(id=ConfigId(uid=uid, generation=generation, step=step))


async def test_a_configuration_is_applied_only_when_it_is_ours_and_later_and_garbage_keeps_the_last_good(
    tmp_path: Path,
) -> None:
    seen: list[tuple[int, int]] = []

    async def apply(config: RuntimeConfig) -> None:
        if config.id.generation == 9:
            raise InvalidRequest("depth too deep")
        seen.append(config.id.order)

    file = tmp_path / "config.json"
    source = ConfigSource(Keyspace("ns", "p"), "u", redis_url=None, file=file, apply=apply, rng=Random(0))
    offers = [_config(2), _config(1), _config(2), _config(2, 1), _config(3, uid="other"), _config(9), _config(4)]
    for config in offers:
        await source.offer(runtime_config.encode(config), "test")
    await source.offer(b"garbage", "test")
    assert seen == [(2, 0), (2, 1), (4, 0)]
    assert source.applied is not None
    assert source.applied.id.generation == 4
    assert "not" in source.last_error or "Invalid" in source.last_error


async def test_a_file_that_is_looked_at_again_is_read_anew_only_where_that_may_change_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses, tried, decoded = True, 0, 0

    async def apply(config: RuntimeConfig) -> None:
        nonlocal tried
        tried += 1
        if refuses:
            raise NotReady("not now")

    def decode(data: bytes) -> RuntimeConfig:
        nonlocal decoded
        decoded += 1
        return original(data)

    original = runtime_config.decode
    monkeypatch.setattr(runtime_config, "decode", decode)
    file = tmp_path / "config.json"
    write_atomic(file, runtime_config.encode(_config(1)))
    source = ConfigSource(Keyspace("ns", "p"), "u", redis_url=None, file=file, apply=apply, rng=Random(0))
    assert not await source.load_file()
    refuses = False
    assert await source.load_file(), "what was refused is tried again"
    assert (tried, decoded) == (2, 2)
    await source.load_file()
    assert (tried, decoded) == (2, 2)
    write_atomic(file, runtime_config.encode(_config(2)))
    await source.load_file()
    write_atomic(file, runtime_config.encode(_config(1)))
    await source.load_file()
    assert (tried, decoded, source.applied.id.generation if source.applied else 0) == (3, 4, 2)


async def test_a_refusal_is_forgotten_once_the_way_it_came_by_brings_what_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def apply(config: RuntimeConfig) -> None:
        pass

    file = tmp_path / "config.json"
    good = runtime_config.encode(_config(1))
    write_atomic(file, good)
    source = ConfigSource(Keyspace("ns", "p"), "u", redis_url=None, file=file, apply=apply, rng=Random(0))
    await source.load_file()
    write_atomic(file, b"garbage")
    await source.load_file()
    refused = source.last_error
    assert refused.startswith("file config.json: ")
    await source.offer(good, "redis key")
    assert source.last_error == refused, "the file has it still"
    write_atomic(file, good)
    await source.load_file()
    assert source.last_error == ""
    await source.offer(b"garbage", "redis push")
    assert source.last_error.startswith("redis push: ")
    monkeypatch.setattr(runtime_config, "decode", None)
    await source.load_file()
    monkeypatch.undo()
    await source.offer(good, "redis key")
    assert source.last_error == ""
    file.unlink()
    await source.load_file()
    assert source.last_error.startswith("cannot read ")
    write_atomic(file, good)
    await source.load_file()
    assert source.last_error == ""


async def test_a_replaced_file_is_applied_within_a_third_of_a_second(tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def apply(config: RuntimeConfig) -> None:
        if config.id.generation == 2:
            arrived.set()

    file = tmp_path / "config.json"
    write_atomic(file, runtime_config.encode(_config(1)))
    source = ConfigSource(Keyspace("ns", "p"), "u", redis_url=None, file=file, apply=apply, rng=Random(0))
    task = asyncio.create_task(source.run())
    try:
        await asyncio.sleep(0.5)
        write_atomic(file, runtime_config.encode(_config(2)))
        await asyncio.wait_for(arrived.wait(), 3)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_process_that_asked_for_it_dies_with_its_parent() -> None:
    child = (
        "import time; from streamserve.runtime.process import die_with_parent; die_with_parent();"
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE);"
        "c.stdout.readline(); print(c.pid, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        import time

        time.sleep(0.05)
    else:
        pytest.fail("the child outlived its parent by 5 s")
