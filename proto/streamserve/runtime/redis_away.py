"""The exceptions that mean that Redis does not answer, for those who go on without it."""

from __future__ import annotations

from typing import Final

from redis.exceptions import RedisError

# RuntimeError: a Redis that dies between its accept and our first word leaves a transport that is closed already, which
# uvloop tells by that ("the handler is closed"), and redis-py passes on.
AWAY: Final = (RedisError, OSError, TimeoutError, RuntimeError)
