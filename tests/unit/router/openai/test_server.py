"""The HTTP port's TLS: whom it knows, also after its files were replaced."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Authority

from streamserve.router.fronts.openai import connection, server
from streamserve.router.fronts.openai.server import HttpServer
from streamserve.runtime.tls import TlsFiles


async def says_who_asks(scope: Any, receive: Any, send: Any) -> None:
    known = bool(scope["extensions"]["tls"]["client_cert_chain"])
    await send({"type": "http.response.start", "status": 200 if known else 401, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def put(files: TlsFiles, identity: TlsFiles) -> None:
    shutil.copy(identity.ca, files.ca)
    shutil.copy(identity.certificate, files.certificate)
    shutil.copy(identity.key, files.key)


class Client:
    def __init__(self, address: str, identity: TlsFiles, *servers: TlsFiles) -> None:
        self._port = int(address.rpartition(":")[2])
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for one in servers:
            self.context.load_verify_locations(one.ca)
        self.context.load_cert_chain(identity.certificate, identity.key)
        self._session: ssl.SSLSession | None = None

    async def ask(self) -> bytes:
        """The status line; empty when the server ended the connection. A session that it was given is used again."""
        return await asyncio.to_thread(self._ask)

    def _ask(self) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", self._port), timeout=5) as plain:
            try:
                with self.context.wrap_socket(plain, session=self._session, server_hostname="127.0.0.1") as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    while piece := connection.recv(65_536):
                        answer += piece
                    self._session = connection.session
            except (ssl.SSLError, ConnectionError):
                return b""
        return answer.partition(b"\r\n")[0]


@pytest.fixture
async def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, TlsFiles, Authority]]:
    monkeypatch.setattr(server, "_LOOK_SECONDS", 0.02)
    authority = Authority(tmp_path)
    files = TlsFiles(tmp_path / "in-force-ca.pem", tmp_path / "in-force.pem", tmp_path / "in-force.key")
    put(files, authority.issue("server"))
    http = HttpServer("127.0.0.1:0", says_who_asks, tls=files)
    yield await http.start(), files, authority
    await http.stop(1.0)


async def test_a_client_of_an_authority_that_is_not_trusted_any_more_is_out_also_with_its_old_session(
    port: tuple[str, TlsFiles, Authority], tmp_path: Path
) -> None:
    address, files, authority = port
    (tmp_path / "new").mkdir()
    replacement = Authority(tmp_path / "new", "new authority").issue("server")
    old = authority.issue("client")
    client = Client(address, old, old, replacement)
    assert await client.ask() == b"HTTP/1.1 200 OK"
    put(files, replacement)
    for _ in range(200):
        if not await Client(address, old, old, replacement).ask():
            break
        await asyncio.sleep(0.02)
    assert await client.ask() == b""


async def test_a_client_that_cannot_speak_tls_1_3_is_refused(port: tuple[str, TlsFiles, Authority]) -> None:
    """Its sessions could be resumed, and show the certificate of their beginning for ever."""
    address, _, authority = port
    identity = authority.issue("client")
    client = Client(address, identity, identity)
    client.context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await client.ask() == b""


SIZE = 8 << 20


@pytest.fixture
async def held(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpServer]:
    """Answers with more than its connection takes unread."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", b"%d" % SIZE)]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": bytes(SIZE)})

    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connection, "FLUSH_SECONDS", 0.2)
    one = HttpServer("127.0.0.1:0", app)
    await one.start()
    yield one
    await one.stop(1.0)


async def opened(held: HttpServer, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = held.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1_024)
    writer.write(said)
    return reader, writer


async def none_are_left(held: HttpServer) -> bool:
    assert held._server is not None
    for _ in range(300):
        await asyncio.sleep(0.01)
        if not held._server.server_state.connections:
            return True
    return False


@pytest.mark.parametrize("said", [b"", b"POST /v1/comple", b"GET / HTTP/1.1\r\nhost: x\r\nx-"])
async def test_a_connection_whose_request_does_not_come_is_ended(held: HttpServer, said: bytes) -> None:
    reader, writer = await opened(held, said)
    assert await asyncio.wait_for(reader.read(), 3.0) == b""
    assert await none_are_left(held)
    writer.close()


async def test_a_connection_whose_last_answer_nobody_reads_is_ended(held: HttpServer) -> None:
    _, writer = await opened(held, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    writer.transport.pause_reading()
    assert await none_are_left(held)
    writer.close()


async def test_a_slow_reader_gets_the_whole_of_a_last_answer(held: HttpServer) -> None:
    reader, writer = await opened(held, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    began = asyncio.get_running_loop().time()
    size = 0
    while piece := await reader.read(1 << 18):
        size += len(piece)
        await asyncio.sleep(0.02)
    assert size == SIZE
    assert asyncio.get_running_loop().time() - began > 2 * connection.FLUSH_SECONDS
    assert await none_are_left(held)
    writer.close()


async def test_a_connection_that_rests_after_an_answer_is_kept(held: HttpServer) -> None:
    reader, writer = await opened(held, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    for _ in range(2):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readexactly(SIZE)
        await asyncio.sleep(2 * connection.HEAD_SECONDS)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    writer.close()
