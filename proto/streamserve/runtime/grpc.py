"""gRPC servers and channels with the timeouts that were measured to work.

Keepalive alone found a frozen peer only after 70 s; with `grpc.http2.ping_timeout_ms` it takes at most a keepalive and
that, 12 s (tests/e2e/router_simulator/test_frozen_peer.py). Messages are bounded on both sides: a larger one gets
RESOURCE_EXHAUSTED from gRPC itself. Channels go straight to their address: gRPC alone would take `http_proxy` from the
environment even for 127.0.0.1 and for pods, which no proxy of a company reaches.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from streamserve.runtime import tls as tls_files
from streamserve.runtime.errors import AddressInUse, SetupError
from streamserve.runtime.tls import TlsFiles

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_KEEPALIVE: Final = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
]
_SIZES: Final = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
SERVER_OPTIONS: Final = [
    *_KEEPALIVE,
    *_SIZES,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]
CHANNEL_OPTIONS: Final = [
    *_KEEPALIVE,
    *_SIZES,
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


def channel(address: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """A channel of its own to one address; retries are the session's business, never the transport's."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    named = [("grpc.ssl_target_name_override", tls.peer_name)] if tls.peer_name is not None else []
    return grpc.aio.secure_channel(address, tls_files.channel_credentials(tls), options=[*CHANNEL_OPTIONS, *named])


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". Raises SetupError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65_535 or not host:
        raise SetupError(f"{address!r} is no address: write host:port, for example 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def token_channel(address: str, ca: Path | None, token: str) -> grpc.aio.Channel:
    """A channel on which every call shows a bearer token, over TLS. `ca`: the authority that signed the server's
    certificate; None: those that gRPC ships with. Raises SetupError."""
    try:
        roots = None if ca is None else ca.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read TLS file {ca}: {error.strerror}") from None
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(roots), grpc.access_token_call_credentials(token)
    )
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


class GrpcServer:
    """A grpc.aio server with health and reflection.

    Add the services' handlers to `server` before `start`. Every service is NOT_SERVING until `set_serving(True)`.
    With TLS clients must show a certificate, unless `gate` decides whom to let in.
    """

    def __init__(
        self,
        address: str,
        *,
        services: Iterable[str],
        tls: TlsFiles | None = None,
        gate: grpc.aio.ServerInterceptor | None = None,
    ) -> None:
        self.address = address
        self.server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=None if gate is None else [gate])
        self._tls = tls
        self._mutual = gate is None
        self._services = ("", *services)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        reflection.enable_server_reflection(
            (*self._services[1:], health.SERVICE_NAME, reflection.SERVICE_NAME), self.server
        )

    async def start(self) -> str:
        """Bind and serve. Returns the bound host:port. Raises AddressInUse."""
        host, port = split_address(self.address)
        _probe(host, port, self.address)
        await self.set_serving(False)
        try:
            if self._tls is None:
                bound = self.server.add_insecure_port(self.address)
            else:
                credentials = tls_files.server_credentials(self._tls, mutual=self._mutual)
                bound = self.server.add_secure_port(self.address, credentials)
        except RuntimeError:
            raise AddressInUse(self.address) from None
        if bound == 0:
            raise AddressInUse(self.address)
        await self.server.start()
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        return self.address

    async def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self._health.set(service, status)

    async def stop(self, grace_seconds: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_seconds)


def _probe(host: str, port: int, address: str) -> None:
    """gRPC's own bind error is a log line from C; ask the kernel first, which says it plainly."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, socket.gaierror):
            raise AddressInUse(address) from None
