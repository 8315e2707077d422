"""Whom a channel takes for the server that it dialled."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.certificates import Authority

from streamserve.runtime import grpc as transport
from streamserve.runtime import tls
from streamserve.runtime.errors import SetupError
from streamserve.runtime.grpc import GrpcServer
from streamserve.runtime.tls import TlsFiles


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[tuple[str, TlsFiles]]:
    """A server at an address that its certificate does not hold, and a client's files."""
    authority = Authority(tmp_path)
    server = GrpcServer("127.0.0.1:0", services=(), tls=authority.issue("server", dns="pod.streamserve"))
    yield await server.start(), authority.issue("client")
    await server.stop(0)


async def answers(address: str, files: TlsFiles) -> bool:
    async with transport.channel(address, files) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False
        return True


@pytest.mark.parametrize(
    ("peer_name", "taken"), [("pod.streamserve", True), (None, False), ("another.name", False)], ids=str
)
async def test_a_server_is_taken_for_its_name_and_for_no_other(
    pod: tuple[str, TlsFiles], peer_name: str | None, taken: bool
) -> None:
    address, files = pod
    assert await answers(address, dataclasses.replace(files, peer_name=peer_name)) is taken


def test_a_peers_name_without_files_is_refused() -> None:
    with pytest.raises(SetupError, match="--tls-peer-name needs TLS"):
        tls.from_arguments(None, None, None, "pod.streamserve")
