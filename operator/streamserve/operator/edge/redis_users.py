"""Who may enter Redis: the users of a namespace exist while it has StreamPairs.

A file in the form of Redis' own (`user NAME on #DIGEST RULES…`, a line each; the chart renders it) says which users
there could be: `<namespace>.router` and `<namespace>.worker`, passwords as digests. Which of them there are follows
from the StreamPairs, looked at every second: what is missing is made; what no namespace with a StreamPair (or with pods
that still run down) needs is removed, and its connections with it. So a Redis that came back empty has them again, and
an operator that was away when the last StreamPair went removes them when it is back. Other users are left alone, and so
are those of a namespace that is not known (`knowledge.py`): there may be a StreamPair in it.
Redis' own file has them all as well: one that restarts lets everybody in at once, also while no operator leads.

Making one that is there already changes nothing for its connections. Only a leader does any of this.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from redis.exceptions import ResponseError

from streamserve.operator.edge.fence import Fence, NotLeader
from streamserve.runtime import logs
from streamserve.runtime.redis_away import AWAY

LOOK_SECONDS: Final = 1.0
_OURS: Final = re.compile(r"(?P<namespace>[a-z0-9]([-a-z0-9]*[a-z0-9])?)\.(router|worker)")
_log = logs.get(__name__)


class Users(Protocol):
    """Redis, as far as its users go. Each method raises one of AWAY, `make` and `remove` NotLeader too."""

    async def names(self) -> list[str]: ...

    async def make(self, name: str, rules: tuple[str, ...]) -> None: ...

    async def remove(self, names: Collection[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be done to Redis' users."""

    make: Mapping[str, tuple[str, ...]]
    remove: frozenset[str]


def read(text: str) -> dict[str, tuple[str, ...]]:
    """The rules of each of our users in a file of Redis' form; other lines are passed over."""
    lines = (line.split() for line in text.splitlines())
    return {words[1]: tuple(words[2:]) for words in lines if len(words) > 2 and words[0] == "user" and _ours(words[1])}


def changes(
    known: Mapping[str, tuple[str, ...]],
    namespaces: Collection[str],
    unknown: Collection[str],
    present: Collection[str],
    made: Mapping[str, tuple[str, ...]],
) -> Changes:
    """`made`: with which rules this operator has made users. One that another has made is made once more."""
    wanted = {name: rules for name, rules in known.items() if _ours(name) in namespaces}
    return Changes(
        {name: rules for name, rules in wanted.items() if name not in present or made.get(name) != rules},
        frozenset(name for name in present if (of := _ours(name)) and of not in namespaces and of not in unknown),
    )


def _ours(name: str) -> str:
    """The namespace of a user; empty for one that is not ours."""
    found = _OURS.fullmatch(name)
    return found["namespace"] if found else ""


class RedisUsers:
    """Keeps the users as the StreamPairs want them. `namespaces`: those that have any. `unknown`: those that may."""

    def __init__(
        self,
        file: Path,
        namespaces: Callable[[], Collection[str]],
        unknown: Callable[[], Collection[str]],
        fence: Fence,
    ) -> None:
        self._file = file
        self._namespaces = namespaces
        self._unknown = unknown
        self._fence = fence
        self._made: dict[str, tuple[str, ...]] = {}
        self._term = fence.term
        self._complaint = ""

    async def run(self, users: Users, *, away: Callable[[Exception], None]) -> None:
        """Until cancelled."""
        while True:
            if self._fence.is_up:
                try:
                    await self.look(users)
                except NotLeader:
                    pass
                except AWAY as error:
                    away(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, users: Users) -> None:
        """Once. Raises NotLeader and one of AWAY; a file that cannot be read, and a refusal, are told once."""
        if self._term != self._fence.term:
            self._term, self._made = self._fence.term, {}
        try:
            known = read(self._file.read_text(errors="replace"))
        except OSError as error:
            self._complain(f"users of Redis stay as they are: {error}")
            return
        refused: dict[str, ResponseError] = {}
        try:
            present = set(await users.names())
        except ResponseError as error:
            self._complain(f"Redis does not tell its users: {error}")
            return
        todo = changes(known, self._namespaces(), self._unknown(), present, self._made)
        for name, rules in todo.make.items():
            try:
                await users.make(name, rules)
            except ResponseError as error:
                refused[name] = error
                continue
            self._made[name] = rules
            if name not in present:
                _log.info("made the user %s of Redis: its namespace has a StreamPair", name)
        if todo.remove:
            await self._remove(users, todo.remove, refused)
        self._complain("; ".join(f"Redis refuses the user {name}: {error}" for name, error in refused.items()))

    async def _remove(self, users: Users, names: frozenset[str], refused: dict[str, ResponseError]) -> None:
        try:
            await users.remove(names)
        except ResponseError as error:
            refused[" and ".join(sorted(names))] = error
            return
        self._made = {name: rules for name, rules in self._made.items() if name not in names}
        _log.info("removed from Redis, for no StreamPair needs them: %s", ", ".join(sorted(names)))

    def _complain(self, text: str) -> None:
        """Once, until it is another one; empty: there is nothing to complain of."""
        if text and text != self._complaint:
            _log.warning("%s", text)
        self._complaint = text
