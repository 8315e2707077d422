"""Ports of what `up` starts, which has to come back where it was."""

from __future__ import annotations

from random import Random

from streamserve.cli.errors import Failed
from streamserve.runtime import ports
from streamserve.runtime.errors import SetupError


def free_port(rng: Random, host: str = "127.0.0.1") -> int:
    """A port of `host` that nobody listens on now. Raises Failed when none is found."""
    try:
        return ports.free_port(rng, host)
    except SetupError as none:
        raise Failed(str(none)) from none


def settled(address: str, rng: Random) -> str:
    """`host:0` with a port in place of the 0; any other address as it is."""
    host, colon, port = address.rpartition(":")
    return f"{host}{colon}{free_port(rng, host.strip('[]'))}" if port == "0" else address
