"""Ports for what has to come back where it was: Redis, the router, a worker's KV hand-over.

They are taken below the kernel's ephemeral range: a port in it may be taken by somebody's outgoing connection while a
process that died is not back yet, even by a client's own attempt to reach it (TCP's self-connect).
"""

from __future__ import annotations

import socket
from random import Random
from typing import Final

from streamserve.cli.errors import Failed

FIRST: Final = 20_000
LAST: Final = 29_999
_TRIES: Final = 200


def free_port(rng: Random, host: str = "127.0.0.1") -> int:
    """A port of `host` that nobody listens on now. Raises Failed when none is found."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_TRIES):
        port = rng.randint(FIRST, LAST)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise Failed(f"no free port of {host} between {FIRST} and {LAST} was found in {_TRIES} tries")


def settled(address: str, rng: Random) -> str:
    """`host:0` with a port in place of the 0; any other address as it is."""
    host, colon, port = address.rpartition(":")
    return f"{host}{colon}{free_port(rng, host.strip('[]'))}" if port == "0" else address
