"""Redis as the operator uses it: configurations written, the words of routers and workers read.

Written: each StreamPair's configuration, whole, as key and as push, at once when it changed; and again where Redis has
forgotten it or where it would expire (`missing`). Only while the fence is up, and never an earlier (generation, step)
of a uid than before: there is one writer. The users of Redis, for `redis_users.py`.

Read: every router's word on each lane, the signals of the workers that are asked for, and the routers' records of
goodput. One round trip carries at most CHUNK keys, or LISTS lists. Every method raises one of AWAY when Redis does not
answer.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import redis.asyncio as redis
from redis.exceptions import ResponseError

from streamserve.contract import goodput, keys, lane_word, signals
from streamserve.contract.goodput import GoodputError, GoodputMinute
from streamserve.contract.keys import Keyspace
from streamserve.contract.lane_word import LaneWord, LaneWordError
from streamserve.contract.signals import SignalsError, WorkerSignals
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.store import Key
from streamserve.operator.observe import together

CHUNK: Final = 500
SOCKET_SECONDS: Final = 2.0
LISTS: Final = 32
_LANES_KEY: Final = re.compile(r"ss:([^/]+)/([^/]+)/router/[^/]+/lanes")
_GOODPUT_KEY: Final = re.compile(r"ss:([^/]+)/([^/]+)/router/([^/]+)/goodput")
T = TypeVar("T")


class _Rereading(redis.SSLConnection):
    """redis-py reads the TLS files of a connection once, and shows that certificate each time it connects anew, also
    when it has been renewed and the one that was read has expired. This one reads them for each time."""

    async def disconnect(self, *arguments: Any, **more: Any) -> None:
        self.ssl_context.context = None
        await super().disconnect(*arguments, **more)


class RedisLink:
    """`namespaces` empty means all of them."""

    def __init__(self, url: str, fence: Fence, namespaces: Sequence[str]) -> None:
        self._client = redis.from_url(url, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS)
        if self._client.connection_pool.connection_class is redis.SSLConnection:
            self._client.connection_pool.connection_class = _Rereading
        self._fence = fence
        self._roots = [f"ss:{namespace}/*/router/*" for namespace in namespaces or ("*",)]
        # By key, as it was read last: of thousands of words few change from one look to the next.
        self._words: dict[str, tuple[bytes, LaneWord | None]] = {}

    async def close(self) -> None:
        await self._client.aclose()

    async def write(self, configs: Mapping[Key, bytes]) -> None:
        """Raises NotLeader, also where the fence falls while Redis has not answered."""
        for some in _chunks(list(configs.items())):
            pipe = self._client.pipeline(transaction=False)
            for key, data in some:
                space = Keyspace(*key)
                pipe.set(space.config, data, ex=keys.CONFIG_TTL_SECONDS)
                pipe.publish(space.config_channel, data)
            await self._as_leader(pipe.execute)

    async def _as_leader(self, write: Callable[[], Awaitable[object]]) -> None:
        """Raises NotLeader, also where the fence falls while Redis has not answered."""
        # Connecting may take long, so it comes before the look at the fence.
        await self._client.ping()
        async with self._fence.while_up():
            await write()

    # Its users: see redis_users.py

    async def names(self) -> list[str]:
        return [str(name) for name in await self._client.acl_users()]

    async def make(self, name: str, rules: tuple[str, ...]) -> None:
        command = ("ACL SETUSER", name, "reset", *rules)
        await self._as_leader(lambda: self._client.execute_command(*command))  # type: ignore[no-untyped-call]

    async def remove(self, names: Collection[str]) -> None:
        await self._as_leader(lambda: self._client.acl_deluser(*sorted(names)))

    # What is read

    async def missing(self, wanted: Sequence[Key]) -> list[Key]:
        """Those of which Redis holds no configuration, or one that expires within half its time."""
        found: list[Key] = []
        for some in _chunks(wanted):
            pipe = self._client.pipeline(transaction=False)
            for key in some:
                pipe.ttl(Keyspace(*key).config)
            left = await pipe.execute()
            found += [key for key, ttl in zip(some, left, strict=True) if int(ttl) < keys.CONFIG_TTL_SECONDS // 2]
        return found

    async def lanes(self) -> dict[Key, LaneWord]:
        """What routers say of each lane, of every StreamPair that has a router."""
        names = await self._names("lanes")
        before, self._words = self._words, {}
        words: dict[Key, list[LaneWord]] = {}
        for name, value in zip(names, await self._values(names), strict=True):
            matched = _LANES_KEY.fullmatch(name)
            if matched is None or value is None:
                continue
            kept = before.get(name)
            word = kept[1] if kept is not None and kept[0] == value else lanes_of(value)
            self._words[name] = (value, word)
            if word is not None:
                words.setdefault((matched[1], matched[2]), []).append(word)
        return {key: together(said) for key, said in words.items()}

    async def signals(self, workers: Sequence[tuple[Key, str]]) -> dict[tuple[Key, str], WorkerSignals]:
        """Of those (pair, worker id) that publish."""
        names = [Keyspace(*key).worker_signals(worker) for key, worker in workers]
        found = {}
        for worker, value in zip(workers, await self._values(names), strict=True):
            if value is not None and (decoded := signals_of(value)) is not None:
                found[worker] = decoded
        return found

    async def goodput(self, newest: Mapping[Key, int]) -> dict[Key, dict[str, list[GoodputMinute]]]:
        """Of each of these pairs so many of the newest records, by router and in their order; what cannot be read is
        left out."""
        matched = [found for name in await self._names("goodput") if (found := _GOODPUT_KEY.fullmatch(name))]
        asked = [found for found in matched if (found[1], found[2]) in newest]
        records: dict[Key, dict[str, list[GoodputMinute]]] = {}
        for found, values in zip(asked, await self._lists(asked, newest), strict=True):
            decoded = [record for value in values if (record := record_of(value)) is not None]
            records.setdefault((found[1], found[2]), {})[found[3]] = decoded
        return records

    async def _lists(self, asked: Sequence[re.Match[str]], newest: Mapping[Key, int]) -> list[list[bytes]]:
        """Empty for a key that is no list: a hand has been there, and the other pairs need not suffer for it."""
        lists: list[list[bytes]] = []
        for some in _chunks(asked, LISTS):
            pipe = self._client.pipeline(transaction=False)
            for found in some:
                pipe.lrange(found[0], -newest[found[1], found[2]], -1)
            for reply in await pipe.execute(raise_on_error=False):
                if isinstance(reply, BaseException) and not _is_wrong_type(reply):
                    raise reply
                lists.append(reply if isinstance(reply, list) else [])
        return lists

    async def _names(self, what: str) -> list[str]:
        """The keys that routers write under this last part. Who may write those may write others: what is no text is
        none of a router's."""
        names = [
            name
            for root in self._roots
            async for name in self._client.scan_iter(match=f"{root}/{what}", count=2 * CHUNK)
        ]
        return [name.decode() for name in names if name.isascii()]

    async def _values(self, names: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = []
        for some in _chunks(names):
            values += [value if isinstance(value, bytes) else None for value in await self._client.mget(some)]
        return values


def lanes_of(value: bytes) -> LaneWord | None:
    try:
        return lane_word.decode(value)
    except LaneWordError:
        return None


def record_of(value: bytes) -> GoodputMinute | None:
    try:
        return goodput.decode(value)
    except GoodputError:
        return None


def signals_of(value: bytes) -> WorkerSignals | None:
    try:
        return signals.decode(value)
    except SignalsError:
        return None


def _is_wrong_type(error: BaseException) -> bool:
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def _chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
