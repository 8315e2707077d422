"""The least of a Redis client: commands out in one write, replies parsed by hiredis. Nothing per reply but its bytes.

redis-py costs 5 to 30 times as much for the one command that is sent all day (measured: router notes §1d). URLs are
those of redis-py: redis://, rediss:// (ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_check_hostname), unix://.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

_READ_BYTES: Final = 65_536
_ENCODED: Final = "write a /, ? or # of the password as %2F, %3F or %23"
Command = tuple[str | bytes | int | float | memoryview, ...]


class RedisDown(Exception):
    """Redis cannot be reached, does not answer in time, or refuses us. The message says which."""


@dataclass(frozen=True, slots=True)
class RedisUrl:
    host: str
    port: int
    path: str
    tls: bool
    database: int
    username: str
    password: str
    options: dict[str, str]

    @property
    def shown(self) -> str:
        """For messages: without the password."""
        return self.path or f"{self.host}:{self.port}"


def parse_url(url: str) -> RedisUrl:
    """Raises ValueError, which shows nothing of the URL: any part of one that is misspelt may be of its password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("its host cannot be read; write redis://[user:password@]host:port/0") from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("it is no Redis URL: use redis://, rediss:// or unix://")
    try:
        port = parts.port or 6379
    except ValueError:
        raise ValueError(f"its port is not a number up to 65535; {_ENCODED}") from None
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    path = unquote(parts.path) if parts.scheme == "unix" else ""
    if parts.scheme == "unix" and not path:
        raise ValueError("it names no socket; write unix:///path/of/the/socket")
    number = options.get("db") or (parts.path.strip("/") if parts.scheme != "unix" else "") or "0"
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"its database is not a number; {_ENCODED}")
    return RedisUrl(
        host=parts.hostname or "127.0.0.1",
        port=port,
        path=path,
        tls=parts.scheme == "rediss",
        database=int(number),
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        options=options,
    )


class RedisConnection:
    """One connection; after any RedisDown it is of no more use."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = hiredis.Reader()

    @classmethod
    async def open(cls, url: RedisUrl, *, timeout_seconds: float) -> RedisConnection:
        """Connect, authenticate, select. Raises RedisDown."""
        try:
            async with asyncio.timeout(timeout_seconds):
                if url.path:
                    streams = await asyncio.open_unix_connection(url.path)
                else:
                    streams = await asyncio.open_connection(
                        url.host, url.port, ssl=_tls(url.options) if url.tls else None
                    )
        except (OSError, TimeoutError, ssl.SSLError) as error:
            raise RedisDown(f"cannot connect to {url.shown}: {error or 'timed out'}") from None
        connection = cls(*streams)
        greeting: list[Command] = []
        if url.password:
            greeting.append(("AUTH", *([url.username] if url.username else []), url.password))
        if url.database:
            greeting.append(("SELECT", url.database))
        try:
            await connection.pipeline([*greeting, ("PING",)], timeout_seconds=timeout_seconds)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def pipeline(self, commands: list[Command], *, timeout_seconds: float) -> list[Any]:
        """The replies, in order. Raises RedisDown, also when Redis answers with an error."""
        try:
            async with asyncio.timeout(timeout_seconds):
                self._writer.write(b"".join(map(_packed, commands)))
                await self._writer.drain()
                return [await self._reply() for _ in commands]
        except TimeoutError:
            raise RedisDown(f"no answer within {timeout_seconds:g} s") from None
        # RuntimeError: uvloop's, of a transport that is closed already.
        except (OSError, RuntimeError, hiredis.HiredisError) as error:
            raise RedisDown(str(error) or type(error).__name__) from None

    async def _reply(self) -> Any:
        while (reply := self._parser.gets()) is False:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise RedisDown("the connection was closed")
            self._parser.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise RedisDown(f"Redis refused: {reply}")
        return reply

    async def close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass  # it is gone either way


def _packed(command: Command) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # the stub says a tuple of one
    return packed


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required").lower() == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    return context


def as_bytes_list(reply: Any) -> list[bytes | None]:
    """An MGET or ZRANGE reply. Raises RedisDown when it is something else."""
    if not isinstance(reply, list) or not all(item is None or isinstance(item, bytes) for item in reply):
        raise RedisDown("a reply has an unexpected type")
    return cast("list[bytes | None]", reply)
