"""The operator's Redis asks for a certificate, and the one that the operator shows is replaced while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from tests.support.leaves import Mounted, Pem, Signer

from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.redis_link import RedisLink
from streamserve.runtime.redis_away import AWAY

NOW = datetime.now(UTC)
SIGNER = Signer(begins=NOW - timedelta(hours=2), ends=NOW + timedelta(hours=2))
SERVER, FIRST, SECOND = (SIGNER.leaf(begins=NOW - timedelta(hours=1), life=timedelta(hours=2)) for _ in range(3))


class Server:
    """Notes whose certificate it is shown, and hangs up: a Redis that dies and comes back."""

    def __init__(self, files: Mounted) -> None:
        self.shown: list[int] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files.files.certificate, files.files.key)
        self._context.load_verify_locations(files.files.ca)
        self._context.verify_mode = ssl.CERT_REQUIRED

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        async with server:
            yield server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.shown.append(int(writer.get_extra_info("peercert")["serialNumber"], 16))
        writer.close()


def serial(pem: Pem) -> int:
    return x509.load_pem_x509_certificate(pem[0]).serial_number


async def test_a_connection_that_is_made_anew_shows_the_certificate_that_is_there_then(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path / "client", SIGNER, FIRST)
    server = Server(Mounted(tmp_path / "server", SIGNER, SERVER))
    files = f"ssl_ca_certs={mounted.files.ca}&ssl_certfile={mounted.files.certificate}&ssl_keyfile={mounted.files.key}"
    async with server.listening() as port:
        link = RedisLink(f"rediss://127.0.0.1:{port}/0?{files}", Fence(lambda: 0.0), ())
        link._client.connection_pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)
        with pytest.raises(AWAY):
            await link.lanes()
        mounted.replace(SECOND)
        with pytest.raises(AWAY):
            await link.lanes()
        await link.close()
    assert server.shown[0] == serial(FIRST)
    assert server.shown[-1] == serial(SECOND)
    assert len(link._client.connection_pool._available_connections) == 1, "or it were another connection's files"
