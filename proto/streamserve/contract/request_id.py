"""A request's two names: the client's own, and the one that workers know it by.

A client's name is unique in one router at a time, and a worker serves many routers. So each router adds its own id and
a number to it: the same name through two routers is two requests, and what a router sends after a request that is over
(an Abort that was under way) never meets the next one of that name. Log lines on both sides carry the client's name.
"""

from __future__ import annotations

import re
from typing import Final

MAX_CLIENT_CHARACTERS: Final = 128
MAX_WORKER_CHARACTERS: Final = MAX_CLIENT_CHARACTERS + 32
_ADDED: Final = re.compile(r"@[0-9a-f]{8}-[0-9]+\Z")


def for_workers(client_id: str, router_id: int, number: int) -> str:
    """`router_id`: 32 bits, of the router's process; `number` rises by one with each of its requests."""
    return f"{client_id}@{router_id:08x}-{number}"


def of_client(worker_id: str) -> str:
    """The client's name in it; the whole where no router has added to it."""
    return _ADDED.sub("", worker_id)
