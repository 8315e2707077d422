"""Ports that are chosen now and listened on later: Redis, the router, a worker's KV hand-over.

They are taken below the kernel's ephemeral range: a port in it may become somebody's outgoing connection before the
process listens, or while one that died is not back yet, even by a client's own attempt to reach it (TCP's
self-connect).
"""

from __future__ import annotations

import socket
from random import Random
from typing import Final

from streamserve.runtime.errors import SetupError

FIRST: Final = 20_000
LAST: Final = 29_999
_TRIES: Final = 200


def free_port(rng: Random, host: str = "127.0.0.1") -> int:
    """A port of `host` that nobody listens on now. Raises SetupError when none is found."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_TRIES):
        port = rng.randint(FIRST, LAST)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise _none(host)


def hold_port(rng: Random, host: str = "127.0.0.1") -> socket.socket:
    """A port of `host` that nobody else is given until this socket is closed, for a listener that comes later.

    The socket is bound and does not listen. Who listens there later has to set SO_REUSEADDR, as ZeroMQ and Redis do;
    a bind without it, a connection's choice of a local port and `free_port` all pass the port over. Raises SetupError
    when none is found.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(_TRIES):
        holder = socket.socket(family, socket.SOCK_STREAM)
        try:
            holder.bind((host, rng.randint(FIRST, LAST)))
        except OSError:
            holder.close()
            continue
        # After the bind: with it set before, two holders would get the same port.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return holder
    raise _none(host)


def _none(host: str) -> SetupError:
    return SetupError(f"no free port of {host} between {FIRST} and {LAST} was found in {_TRIES} tries")
