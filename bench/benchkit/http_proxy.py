"""A prefill/decode proxy in front of two of vLLM's API servers, as small as it can be.

    python bench/benchkit/http_proxy.py --prefill HOST:PORT --decode HOST:PORT --ready-file PATH

For each POST /v1/completions: the same body with max_tokens 1 and `do_remote_decode` to the prefill server, its
`kv_transfer_params` into the client's body, that to the decode server, whose answer is passed on as bytes. Raw asyncio
streams on uvloop with kept connections: a proxy on FastAPI and httpx would make the reference slower than it need be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import uvloop

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
END = b"0\r\n\r\n"


class Upstream:
    """Connections to one server, used again when their answer was read to its end."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._idle: list[Connection] = []

    async def send(self, body: bytes) -> Connection:
        connection = self._kept() or await asyncio.open_connection(self._host, self._port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        connection[1].write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection

    def _kept(self) -> Connection | None:
        """A connection that the server has not closed meanwhile, as it does after some idle seconds."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    def give_back(self, connection: Connection) -> None:
        self._idle.append(connection)


async def read_message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body) of a request or response that has a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head, await reader.readexactly(length)


class Proxy:
    def __init__(self, prefill: str, decode: str) -> None:
        self._prefill, self._decode = Upstream(prefill), Upstream(decode)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, request after request."""
        try:
            while True:
                _, body = await read_message(reader)
                await self._answer(json.loads(body), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        first = {**request, "max_tokens": 1, "stream": False, "kv_transfer_params": ASK}
        first.pop("stream_options", None)
        connection = await self._prefill.send(json.dumps(first).encode())
        head, body = await read_message(connection[0])
        self._prefill.give_back(connection)
        if b" 200 " not in head[:20]:
            writer.write(head + body)
            return
        request["kv_transfer_params"] = json.loads(body)["kv_transfer_params"]
        connection = await self._decode.send(json.dumps(request).encode())
        tail = b""
        while not tail.endswith(END):
            data = await connection[0].read(65_536)
            if not data:
                raise ConnectionError("the decode server closed the stream")
            writer.write(data)
            tail = (tail + data)[-len(END) :]
        self._decode.give_back(connection)


async def serve(prefill: str, decode: str, ready_file: Path) -> None:
    proxy = Proxy(prefill, decode)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    fresh = ready_file.with_suffix(".new")
    fresh.write_text(f'{{"http": "127.0.0.1:{port}"}}')
    fresh.replace(ready_file)
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        try:
            await asyncio.wait_for(stop.wait(), 0.5)
        except TimeoutError:
            continue
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefill", required=True, metavar="HOST:PORT")
    parser.add_argument("--decode", required=True, metavar="HOST:PORT")
    parser.add_argument("--ready-file", required=True, type=Path, metavar="PATH", help="written once it serves")
    given = parser.parse_args()
    uvloop.run(serve(given.prefill, given.decode, given.ready_file))


if __name__ == "__main__":
    main()
