"""What a router is told when it starts; everything else is hot and comes with the runtime configuration."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streamserve.contract.keys import Keyspace
from streamserve.runtime import redis_url, tls
from streamserve.runtime.errors import SetupError
from streamserve.runtime.grpc import split_address
from streamserve.runtime.tls import TlsFiles

REDIS_VARIABLE: Final = "STREAMSERVE_REDIS_URL"
_EPILOG: Final = """\
The router admits requests, picks a (prefill, decode) pair for each and streams the tokens back. It finds its workers
in Redis (every worker registers there) and in the --fleet file; either suffices, so it serves on while Redis is away.

A lane takes traffic once the router has seen fresh signals of it and a canary transfer has passed; /readyz on the
metrics address answers 200 from the first such lane on.

SIGINT or SIGTERM stops it: new requests are refused, running streams may end within --drain-seconds.
Exit status: 0 stopped as asked, 1 a part of it failed, 2 it could not start as asked.

example:
  streamserve-router --namespace local --pair tiny --pair-uid 7d0f \\
      --redis redis://127.0.0.1:6379/0 --grpc 127.0.0.1:50051 --http 127.0.0.1:8000 --metrics 127.0.0.1:9090 \\
      --config config.json"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    keyspace: Keyspace
    pair_uid: str
    redis_url: str | None
    grpc: str
    http: str | None
    metrics: str
    config_file: Path
    fleet_file: Path | None
    ready_file: Path | None
    die_with_parent: bool
    tls: TlsFiles | None
    tokens: Path | None
    token_grpc: str | None
    stall_seconds: float
    slow_consumer_seconds: float
    drain_seconds: float
    log_level: str


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="streamserve-router",
        description="The router of one StreamPair: gRPC and OpenAI in front, prefill and decode workers behind.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pair = parser.add_argument_group("which StreamPair")
    pair.add_argument("--namespace", required=True, metavar="NS", help="its namespace; `local` in local mode")
    pair.add_argument("--pair", required=True, metavar="NAME", help="its name")
    pair.add_argument("--pair-uid", required=True, metavar="UID", help="its uid; workers of another are refused")
    where = parser.add_argument_group("addresses (port 0 means any free one)")
    where.add_argument("--grpc", required=True, metavar="HOST:PORT", help="InferenceService and AdminService")
    where.add_argument("--http", metavar="HOST:PORT", help="OpenAI-compatible API; without it there is none")
    where.add_argument("--metrics", required=True, metavar="HOST:PORT", help="/metrics, /healthz and /readyz")
    where.add_argument(
        "--ready-file", type=Path, metavar="PATH", help='written once bound: {"grpc", "token_grpc", "http", "metrics"}'
    )
    sources = parser.add_argument_group("what it listens to")
    sources.add_argument(
        "--redis",
        metavar="URL",
        help=f"signals and configuration (default ${REDIS_VARIABLE}; without either, --fleet alone)",
    )
    sources.add_argument("--config", required=True, type=Path, metavar="FILE", help="runtime configuration, watched")
    sources.add_argument("--fleet", type=Path, metavar="FILE", help='{"workers": [{"id", "role", "lane", …}]}, watched')
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--stall-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="a worker that is silent for so many seconds counts as lost, unless it is full and works (default 20)",
    )
    limits.add_argument(
        "--slow-consumer-seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="a client that reads nothing for so many seconds is given up (default 30)",
    )
    limits.add_argument(
        "--drain-seconds",
        type=float,
        default=20.0,
        metavar="S",
        help="longest wait for running streams at the end, in seconds (default 20)",
    )
    security = parser.add_argument_group("mutual TLS, for clients and towards the workers")
    security.add_argument("--tls-ca", type=Path, metavar="FILE", help="authority that signs the peers, PEM")
    security.add_argument("--tls-certificate", type=Path, metavar="FILE", help="our certificate, PEM")
    security.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    security.add_argument(
        "--tls-peer-name",
        metavar="NAME",
        help="name in the workers' certificates, where they are dialled by another (default: the address dialled)",
    )
    clients = parser.add_argument_group(
        "clients without a certificate (with TLS; the OpenAI API takes certificates and tokens at one port)"
    )
    clients.add_argument(
        "--client-tokens",
        type=Path,
        metavar="DIR",
        help="bearer tokens, one file for each client, named after it; watched, and may be missing",
    )
    clients.add_argument(
        "--token-grpc",
        metavar="HOST:PORT",
        help="the same services as --grpc for clients that show one of those tokens instead of a certificate",
    )
    process = parser.add_argument_group("process")
    process.add_argument("--die-with-parent", action="store_true", help="end when the process that started it ends")
    process.add_argument(
        "--log-level",
        default="INFO",
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="least level that is logged (default INFO)",
    )
    return parser


def parse(arguments: Sequence[str]) -> RouterSettings:
    """The settings in the command line. Raises SetupError for values that argparse cannot judge."""
    given = parser().parse_args(arguments)
    try:
        keyspace = Keyspace(given.namespace, given.pair)
    except ValueError as error:
        raise SetupError(str(error)) from None
    for address in filter(None, (given.grpc, given.http, given.metrics, given.token_grpc)):
        split_address(address)
    files = tls.from_arguments(given.tls_ca, given.tls_certificate, given.tls_key, given.tls_peer_name)
    if given.client_tokens is not None and files is None:
        raise SetupError(
            "--client-tokens needs TLS, or tokens would cross the network in the clear: give the three --tls files"
        )
    if given.token_grpc is not None and given.client_tokens is None:
        raise SetupError("--token-grpc lets in who shows a token: say with --client-tokens where they are")
    for name in ("stall_seconds", "slow_consumer_seconds", "drain_seconds"):
        if not 0.0 < getattr(given, name) <= 3_600.0:
            raise SetupError(f"--{name.replace('_', '-')} must be above 0 and at most 3600")
    return RouterSettings(
        keyspace=keyspace,
        pair_uid=given.pair_uid,
        redis_url=redis_url.chosen(given.redis, os.environ, REDIS_VARIABLE),
        grpc=given.grpc,
        http=given.http,
        metrics=given.metrics,
        config_file=given.config,
        fleet_file=given.fleet,
        ready_file=given.ready_file,
        die_with_parent=given.die_with_parent,
        tls=files,
        tokens=given.client_tokens,
        token_grpc=given.token_grpc,
        stall_seconds=given.stall_seconds,
        slow_consumer_seconds=given.slow_consumer_seconds,
        drain_seconds=given.drain_seconds,
        log_level=given.log_level,
    )
