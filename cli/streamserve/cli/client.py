"""What the commands that talk to a running router share: its address, one channel, errors a person can use."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from streamserve.cli.errors import Failed, Refused

if TYPE_CHECKING:
    import grpc

    from streamserve.runtime.tls import TlsFiles

DEFAULT_SERVER: Final = "127.0.0.1:50051"
CONNECT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Bearer:
    """A client that shows a token. `ca` None: the authorities that gRPC ships with."""

    ca: Path | None
    token: str = field(repr=False)


def add_server_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        metavar="ADDR",
        default=DEFAULT_SERVER,
        help=f"the router's gRPC address, host:port (default {DEFAULT_SERVER})",
    )
    secure = parser.add_argument_group(
        "TLS", "for a router that was started with it: all three PEM files, or a token and, at its own port, --tls-ca"
    )
    secure.add_argument("--tls-ca", type=Path, metavar="FILE", help="authority that signed the router's certificate")
    secure.add_argument("--tls-certificate", type=Path, metavar="FILE", help="our certificate: the router asks for one")
    secure.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    secure.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="a bearer token instead of a certificate, for the router's token port; without --tls-ca the router's "
        "certificate has to be of an authority that gRPC ships with",
    )


def run_with_channel(args: argparse.Namespace, work: Callable[[grpc.aio.Channel], Awaitable[int]]) -> int:
    """Connect as the server options say, do the work, say plainly what went wrong."""
    identity = _identity(args)

    async def body() -> int:
        async with open_channel(args.server, identity) as channel:
            return await work(channel)

    return asyncio.run(body())


def _identity(args: argparse.Namespace) -> TlsFiles | Bearer | None:
    """Who we are to the router. Raises Refused."""
    from streamserve.runtime import tls
    from streamserve.runtime.errors import SetupError

    if args.token_file is None:
        try:
            return tls.from_arguments(args.tls_ca, args.tls_certificate, args.tls_key)
        except SetupError as error:
            raise Refused(str(error)) from None
    if args.tls_certificate is not None or args.tls_key is not None:
        raise Refused("--token-file stands for a certificate: leave --tls-certificate and --tls-key out")
    try:
        token = args.token_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise Refused(f"cannot read --token-file {args.token_file}: {error}") from None
    if not token or not token.isprintable() or " " in token:
        raise Refused(f"--token-file {args.token_file} holds no token: one word of printable characters is needed")
    return Bearer(args.tls_ca, token)


@contextmanager
def utf8_words() -> Iterator[None]:
    """Around what makes a request of the command line's words and of stdin. Raises Refused."""
    try:
        yield
    except UnicodeError:
        raise Refused("a prompt, --model and --workload have to be UTF-8 text; convert it, as with `iconv`") from None


@asynccontextmanager
async def open_channel(address: str, identity: TlsFiles | Bearer | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """A connected channel. Raises Failed when nobody listens, and for every status that the work meets."""
    import grpc

    from streamserve.runtime import grpc as transport
    from streamserve.runtime.errors import SetupError

    if "://" in address:
        raise Refused(f"--server {address}: write host:port, without {address.partition('://')[0]}://")
    try:
        host, port = transport.split_address(address)
    except SetupError as error:
        raise Refused(f"--server: {error}") from None
    # A refused connection is known at once here; gRPC would go on trying.
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CONNECT_SECONDS)
        writer.close()
    except UnicodeError:
        raise Refused(f"--server {address}: {host} is no name of a host") from None
    except (OSError, TimeoutError):
        raise Failed(nobody_listens(address)) from None
    try:
        if isinstance(identity, Bearer):
            channel = transport.token_channel(address, identity.ca, identity.token)
        else:
            channel = transport.channel(address, identity)
    except SetupError as error:
        raise Refused(str(error)) from None
    try:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_SECONDS)
        except TimeoutError:
            raise Failed(no_handshake(address, identity)) from None
        try:
            yield channel
        except grpc.aio.AioRpcError as error:
            raise Failed(describe(error, address)) from None
    finally:
        await channel.close(None)


def nobody_listens(address: str) -> str:
    return f"nothing answers at {address}: is `streamserve up` running? --server names another address"


def no_handshake(address: str, identity: TlsFiles | Bearer | None) -> str:
    """Somebody listens there, but the connection does not come about."""
    if isinstance(identity, Bearer):
        trusted = (
            f"{identity.ca} did not sign" if identity.ca else "none of the authorities that gRPC ships with signed"
        )
        return (
            f"no TLS connection with {address}: it wants a client's certificate (tokens are for the router's token "
            f"port), or it speaks no TLS, or {trusted} its certificate, or that is for another name than in --server"
        )
    if identity is None:
        return (
            f"what listens at {address} does not speak gRPC without TLS: give --tls-ca, --tls-certificate and "
            "--tls-key, or correct --server (it is the gRPC address, not the OpenAI API's)"
        )
    return (
        f"no TLS connection with {address}: it speaks no TLS, or {identity.ca} did not sign its certificate, or that "
        f"is for another name than in --server, or it does not accept {identity.certificate}"
    )


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
