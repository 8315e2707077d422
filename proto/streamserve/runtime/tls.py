"""TLS from files that may be replaced while the process runs.

A renewed certificate is picked up by new connections; running streams keep theirs. Files are re-read when their
modification time changes, checked at each handshake (server) or each new channel (client).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from streamserve.runtime.errors import SetupError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the authority that signs peers, our certificate and its key.

    `peer_name` is the name that the servers' certificates carry, for servers that are dialled by an address which no
    certificate can hold, as a pod's. None: the name or address that is dialled.
    """

    ca: Path
    certificate: Path
    key: Path
    peer_name: str | None = None

    def read(self) -> tuple[bytes, bytes, bytes]:
        """(ca, certificate, key). Raises SetupError naming the file that cannot be read."""
        contents = []
        for path in (self.ca, self.certificate, self.key):
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise SetupError(f"cannot read TLS file {path}: {error.strerror}") from None
        return contents[0], contents[1], contents[2]

    def stamp(self) -> tuple[int, ...]:
        """Another one when a file was replaced; empty while one is away."""
        try:
            return tuple(path.stat().st_mtime_ns for path in (self.ca, self.certificate, self.key))
        except OSError:
            return ()


def from_arguments(
    ca: Path | None, certificate: Path | None, key: Path | None, peer_name: str | None = None
) -> TlsFiles | None:
    """All three files or none. Raises SetupError when only some are given, or a peer's name without them."""
    if ca is None and certificate is None and key is None:
        if peer_name is not None:
            raise SetupError("--tls-peer-name needs TLS: give --tls-ca, --tls-certificate and --tls-key with it")
        return None
    if ca is None or certificate is None or key is None:
        raise SetupError("TLS takes three files: give --tls-ca, --tls-certificate and --tls-key together")
    return TlsFiles(ca, certificate, key, peer_name)


def server_credentials(files: TlsFiles, *, mutual: bool = True) -> grpc.ServerCredentials:
    """TLS that reloads its files when they change. `mutual`: clients must show a certificate of the authority; gRPC
    for Python can demand one or never ask, so a port that takes other proofs of identity too is a second one."""
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files),
        _fetcher(files),  # type: ignore[arg-type]  # the stub forgets that None keeps the current one
        require_client_authentication=mutual,
    )


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    ca, certificate, key = files.read()
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    ca, certificate, key = files.read()
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)


def _fetcher(files: TlsFiles) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
    seen = files.stamp()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        now = files.stamp()
        if now == seen:
            return None
        try:
            fresh = _configuration(files)
        except SetupError:
            return None  # half-written files: keep what works, look again at the next handshake
        seen = now
        return fresh

    return fetch
