"""The routers' records of the StreamPairs that hold a canary, read from Redis.

    the newest RECENT of each router    every READ_SECONDS, so that a look at the end of a hold has its last minute
    all since the hold began            at first, and every WHOLE_SECONDS: a router whose Redis was away delivers late

While a hold's records have never been read, nothing is known of them and nobody is judged; where Redis stays away for
PATIENCE_SECONDS, there are none. What was read stays, also when Redis loses it. Nor is anybody judged in a new term of
the fence before all was read anew: what this process read when it led before may end long before now. Pairs without a
hold cost nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from streamserve.contract.goodput import MINUTES, GoodputMinute
from streamserve.operator.canary.evidence import Records
from streamserve.operator.edge.fence import Fence
from streamserve.operator.edge.store import Key
from streamserve.runtime.redis_away import AWAY

READ_SECONDS: Final = 2.0
WHOLE_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 30.0
RECENT: Final = 4
MAX_ROUTERS: Final = 256
_SHARE_OF_TIME: Final = 0.1


class Link(Protocol):
    async def goodput(self, newest: Mapping[Key, int]) -> Mapping[Key, Mapping[str, list[GoodputMinute]]]: ...


@dataclass(slots=True)
class _Held:
    """`since_seconds`: when the hold began, since the epoch; `asked_at`, `whole_at` on the monotonic clock."""

    since_seconds: float
    asked_at: float
    whole_at: float | None = None
    routers: dict[str, dict[int, GoodputMinute]] = field(default_factory=dict)
    records: Records = field(default_factory=dict)


class Evidence:
    def __init__(
        self,
        fence: Fence,
        *,
        ask: Callable[[Key], None],
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._fence = fence
        self._ask = ask
        self._clock = clock
        self._wall_clock = wall_clock
        self._held: dict[Key, _Held] = {}

    def want(self, key: Key, since_seconds: float | None) -> None:
        """The pair's hold, None where there is none. Another hold begins with nothing known."""
        held = self._held.get(key)
        if since_seconds is None:
            self._held.pop(key, None)
        elif held is None or held.since_seconds != since_seconds:
            self._held[key] = _Held(since_seconds, self._clock())

    def known(self, key: Key) -> Records | None:
        held = self._held.get(key)
        if held is None:
            return None
        patient = held.whole_at is None and self._clock() - held.asked_at < PATIENCE_SECONDS
        return None if patient else held.records

    def begin_term(self) -> None:
        """Nothing is known until all has been read again; what was read before is kept to be added to."""
        for held in self._held.values():
            held.asked_at, held.whole_at = self._clock(), None

    async def run(self, link: Link, *, away: Callable[[BaseException], None]) -> None:
        """Until cancelled."""
        while True:
            began = self._clock()
            if self._held and self._fence.is_up:
                try:
                    await self._read(link)
                except AWAY as error:
                    away(error)
            await asyncio.sleep(max(READ_SECONDS, (self._clock() - began) / _SHARE_OF_TIME))

    async def _read(self, link: Link) -> None:
        term = self._fence.term
        asked = {key: (held, self._newest(held)) for key, held in self._held.items()}
        found = await link.goodput({key: count for key, (_, count) in asked.items()})
        if term != self._fence.term:
            return
        for key, (held, count) in asked.items():
            if self._held.get(key) is not held:
                continue
            first = held.whole_at is None
            if count > RECENT:
                held.whole_at = self._clock()
            if _merge(held, found.get(key, {})) or first:
                self._ask(key)

    def _newest(self, held: _Held) -> int:
        """How many of each router: all since the hold began, and one minute more for what two clocks differ."""
        if held.whole_at is not None and self._clock() - held.whole_at < WHOLE_SECONDS:
            return RECENT
        minutes = int(max(0.0, self._wall_clock() - held.since_seconds) // 60) + 2
        return min(MINUTES, max(RECENT + 1, minutes))


def _merge(held: _Held, found: Mapping[str, list[GoodputMinute]]) -> bool:
    """True when something is new."""
    news = False
    for router, delivered in sorted(found.items()):
        if router not in held.routers and len(held.routers) >= MAX_ROUTERS:
            continue
        known = held.routers.setdefault(router, {})
        for record in delivered:
            if known.get(record.minute) != record:
                known[record.minute] = record
                news = True
        for minute in sorted(known)[:-MINUTES]:
            del known[minute]
    if news:
        held.records = {router: tuple(known.values()) for router, known in held.routers.items()}
    return news
