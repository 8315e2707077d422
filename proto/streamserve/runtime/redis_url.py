"""The Redis URL of a command line or of the environment, judged before anything starts.

Two clients read it, `redis_wire.py` and redis-py, so both judge it. What they find wrong is told without a word of the
URL: where a password is not percent-encoded, its parts are what a parser takes for a port or for an option.
"""

from __future__ import annotations

from collections.abc import Mapping

import redis.asyncio as redis

from streamserve.runtime.errors import SetupError
from streamserve.runtime.redis_wire import parse_url


def chosen(flag: str | None, environment: Mapping[str, str], variable: str) -> str | None:
    """What --redis says, or else the variable; None without either. Raises SetupError that names which of the two."""
    url, named = (flag, "--redis") if flag else (environment.get(variable), f"${variable}")
    if not url:
        return None
    try:
        parse_url(url)
    except ValueError as error:
        raise SetupError(f"{named}: {error}") from None
    try:
        # Options are judged when a connection is made, which connects to nothing yet.
        redis.ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, redis.RedisError):
        raise SetupError(
            f"{named}: an option after its ? is none of redis-py's, or has a value that it does not take; correct it, "
            "or write a ? of the password as %3F"
        ) from None
    return url
