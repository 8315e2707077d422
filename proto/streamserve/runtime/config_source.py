"""Where a component's runtime configuration comes from, and when one is applied.

Two ways lead here, for one writer: a file (durable; a mounted ConfigMap, or a plain file in local mode) and Redis
(fast: a push on a channel, a read on every connect, and a read each second in case a push was lost). Whichever brings
a configuration of the known uid with a higher (generation, step) first wins; anything else changes nothing. What
cannot be read or applied leaves the last good one in force and is told in `last_error`, until a later one is applied or
the way it came by brings one that is in force already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import redis.asyncio as redis
import watchfiles

from streamserve.contract import runtime_config
from streamserve.contract.errors import StreamServeError
from streamserve.contract.keys import Keyspace
from streamserve.contract.runtime_config import ConfigError, RuntimeConfig
from streamserve.runtime import logs
from streamserve.runtime.backoff import Backoff
from streamserve.runtime.redis_away import AWAY

_log = logs.get(__name__)
Apply = Callable[[RuntimeConfig], Awaitable[None]]
_FILE = "file"


class ConfigSource:
    """Keeps one component's configuration current. `apply` is never called twice at once, nor with an older one."""

    def __init__(
        self,
        keyspace: Keyspace,
        uid: str,
        *,
        redis_url: str | None,
        file: Path | None,
        apply: Apply,
        rng: Random,
        refresh_seconds: float = 1.0,
    ) -> None:
        self._keys = keyspace
        self._uid = uid
        self._redis_url = redis_url
        self._file = file
        self._apply = apply
        self._rng = rng
        self._refresh_seconds = refresh_seconds
        self._turn = asyncio.Lock()
        self._known: dict[str, bytes] = {}
        # What is wrong with what a way brought last: the file or Redis, whose push and key are one.
        self._errors: dict[str, str] = {}
        self.applied: RuntimeConfig | None = None

    @property
    def last_error(self) -> str:
        """Why a configuration was refused that still stands somewhere; empty when none does."""
        return next(reversed(self._errors.values()), "")

    async def run(self) -> None:
        """Watch both ways until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._file is not None:
                group.create_task(self._watch_file(self._file), name="config-file")
            if self._redis_url is not None:
                group.create_task(self._watch_redis(self._redis_url), name="config-redis")

    async def load_file(self) -> bool:
        """Offer what the file holds now. True when a configuration is in force afterwards."""
        if self._file is not None:
            try:
                await self._found(self._file.read_bytes(), f"{_FILE} {self._file.name}")
            except OSError as error:
                self._errors[_FILE] = f"cannot read {self._file}: {error.strerror}"
        return self.applied is not None

    async def _found(self, data: bytes, origin: str) -> None:
        """Offer what a place that is looked at each second holds, unless that is known to change nothing."""
        if data == self._known.get(origin) and _way(origin) not in self._errors:
            return
        await self.offer(data, origin)
        if _way(origin) not in self._errors:
            self._known[origin] = data

    async def offer(self, data: bytes, origin: str) -> bool:
        """Apply `data` if it supersedes what is in force. True when it was applied."""
        try:
            config = runtime_config.decode(data)
        except ConfigError as error:
            self._refuse(origin, str(error))
            return False
        if config.id.uid != self._uid:
            self._refuse(origin, f"it is for another StreamPair (uid {config.id.uid})")
            return False
        async with self._turn:
            if not config.id.supersedes(self.applied.id if self.applied else None):
                self._errors.pop(_way(origin), None)
                return False
            try:
                await self._apply(config)
            except StreamServeError as error:
                self._refuse(origin, f"generation {config.id.generation}: {error.message}")
                return False
            self.applied = config
            self._errors.clear()
        _log.info(
            "configuration applied from %s",
            origin,
            extra={"generation": config.id.generation, "step": config.id.step},
        )
        return True

    def _refuse(self, origin: str, why: str) -> None:
        message = f"{origin}: {why}"
        if message != self._errors.pop(_way(origin), ""):
            _log.warning("configuration refused, the last good one stays: %s", message)
        self._errors[_way(origin)] = message

    async def _watch_file(self, file: Path) -> None:
        """The directory is watched, not the file: an atomic rename and a ConfigMap's symlink swap both show there."""
        await self.load_file()
        async for _ in watchfiles.awatch(
            file.parent, recursive=False, step=50, debounce=60, rust_timeout=1_000, yield_on_timeout=True
        ):
            await self.load_file()

    async def _watch_redis(self, url: str) -> None:
        backoff = Backoff(0.05, 2.0, self._rng)
        while True:
            try:
                client = redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
                async with client, client.pubsub() as channel:
                    await channel.subscribe(self._keys.config_channel)
                    await self._read_key(client)
                    backoff.reset()
                    await self._follow(client, channel)
            except AWAY as error:
                _log.debug("redis is away: %s", error)
            await asyncio.sleep(backoff.next())

    async def _follow(self, client: redis.Redis, channel: redis.client.PubSub) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._refresh_seconds
        while True:
            message = await channel.get_message(ignore_subscribe_messages=True, timeout=max(0.0, due - loop.time()))
            if message is not None and isinstance(message.get("data"), bytes):
                await self.offer(message["data"], "redis push")
            if loop.time() >= due:
                await self._read_key(client)
                due = loop.time() + self._refresh_seconds

    async def _read_key(self, client: redis.Redis) -> None:
        data = await client.get(self._keys.config)
        if isinstance(data, bytes):
            await self._found(data, "redis key")


def _way(origin: str) -> str:
    """`file` or `redis`: the first word of an origin."""
    return origin.partition(" ")[0]
