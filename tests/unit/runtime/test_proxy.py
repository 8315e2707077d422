"""A company's proxy in the environment is for the web: our own addresses are reached as they are."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.leaves import Mounted, Signer

from streamserve.runtime.grpc import GrpcServer, channel, token_channel
from streamserve.runtime.tls import TlsFiles

NOW = datetime.now(UTC)
SIGNER = Signer(begins=NOW - timedelta(hours=1), ends=NOW + timedelta(hours=2))
LEAF = SIGNER.leaf(begins=NOW - timedelta(hours=1), life=timedelta(hours=2))


class Anybody(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets clients without a certificate in."""

    async def intercept_service(self, continuation, details):  # type: ignore[no-untyped-def]
        return await continuation(details)


@pytest.fixture(autouse=True)
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A proxy that nobody answers for: its port is held, and nothing listens on it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        for name in ("no_proxy", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in ("grpc_proxy", "https_proxy", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{held.getsockname()[1]}")
        yield


async def answers(one: grpc.aio.Channel) -> bool:
    try:
        seen = await health_pb2_grpc.HealthStub(one).Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False
    finally:
        await one.close()
    return bool(seen.status)


async def serving(server: GrpcServer) -> str:
    address = await server.start()
    await server.set_serving(True)
    return address


async def test_a_channel_of_ours_goes_past_the_proxy_that_grpc_would_take() -> None:
    server = GrpcServer("127.0.0.1:0", services=())
    address = await serving(server)
    try:
        assert not await answers(grpc.aio.insecure_channel(address)), "this test would show nothing"
        assert await answers(channel(address))
    finally:
        await server.stop(0)


@pytest.mark.parametrize("token", [False, True], ids=["with a certificate", "with a token"])
async def test_so_does_one_with_tls(tmp_path: Path, token: bool) -> None:
    files: TlsFiles = Mounted(tmp_path / "tls", SIGNER, LEAF).files
    server = GrpcServer("127.0.0.1:0", services=(), tls=files, gate=Anybody() if token else None)
    address = await serving(server)
    try:
        assert await answers(token_channel(address, files.ca, "word") if token else channel(address, files))
    finally:
        await server.stop(0)
