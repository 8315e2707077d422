"""Ports of what `up` starts, which has to come back where it was."""

from __future__ import annotations

from collections.abc import Sequence
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


def settled(addresses: Sequence[str], rng: Random) -> list[str]:
    """Each `host:0` with a port in place of the 0, none of them twice; any other address as it is."""
    taken = {port for _, _, port in (address.rpartition(":") for address in addresses)} - {"0"}
    result = []
    for address in addresses:
        host, colon, port = address.rpartition(":")
        if port == "0":
            while (port := str(free_port(rng, host.strip("[]")))) in taken:
                pass
            taken.add(port)
        result.append(f"{host}{colon}{port}")
    return result
