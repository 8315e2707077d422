"""What the commands that talk to a running router share: its address, one channel, errors a person can use."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from streamserve.cli.errors import Failed, Refused

if TYPE_CHECKING:
    import grpc

DEFAULT_SERVER: Final = "127.0.0.1:50051"
CONNECT_SECONDS: Final = 2.0


def add_server_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        metavar="ADDR",
        default=DEFAULT_SERVER,
        help=f"the router's gRPC address, host:port (default {DEFAULT_SERVER})",
    )


def run_with_channel(address: str, work: Callable[[grpc.aio.Channel], Awaitable[int]]) -> int:
    """Connect, do the work, say plainly what went wrong."""

    async def body() -> int:
        async with open_channel(address) as channel:
            return await work(channel)

    return asyncio.run(body())


@asynccontextmanager
async def open_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A connected channel. Raises Failed when nobody listens, and for every status that the work meets."""
    import grpc

    from streamserve.runtime import grpc as transport
    from streamserve.runtime.errors import SetupError

    try:
        host, port = transport.split_address(address)
    except SetupError as error:
        raise Refused(f"--server: {error}") from None
    # A refused connection is known at once here; gRPC would go on trying.
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
        writer.close()
    except (OSError, TimeoutError):
        raise Failed(nobody_listens(address)) from None
    channel = transport.channel(address)
    try:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_SECONDS)
        except TimeoutError:
            raise Failed(nobody_listens(address)) from None
        try:
            yield channel
        except grpc.aio.AioRpcError as error:
            raise Failed(describe(error, address)) from None
    finally:
        await channel.close(None)


def nobody_listens(address: str) -> str:
    return f"nothing answers at {address}: is `streamserve up` running? --server names another address"


def describe(error: grpc.aio.AioRpcError, address: str) -> str:
    """One line: what the server said, its status, when to try again."""
    from streamserve.contract.errors import Retryable
    from streamserve.runtime.status import from_rpc_error

    if error.code().name == "UNAVAILABLE" and "failed to connect" in (error.details() or ""):
        return nobody_listens(address)
    cause = from_rpc_error(error)
    hint = ""
    if isinstance(cause, Retryable):
        after = cause.retry_after_seconds
        hint = f"; try again in {after:.1f} s" if after else "; try again"
    return f"{cause.message} ({error.code().name}{hint})"
