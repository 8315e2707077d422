"""Edits of the file while `up` runs: judged, then taken over whole, or refused with the last good version in force.

    read → judge (hot, scale, cold, fixed) → obstacles on this machine → would the engines take it → configuration
         → written, and its echo told

Hot settings are written to everyone at once; what is cold or a matter of scale is left to the planner, which sees the
new version in `Current`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from streamserve.cli.up import edits, engine_check, preflight, push, watch
from streamserve.cli.up.edits import Verdict
from streamserve.cli.up.engine_check import Answer
from streamserve.cli.up.lanes import Lanes
from streamserve.cli.up.push import ConfigPush
from streamserve.cli.up.revision import revision_of
from streamserve.cli.up.supervisor import Child
from streamserve.contract import hot
from streamserve.contract.runtime_config import RuntimeConfig
from streamserve.contract.streampair import Problem, StreamPair
from streamserve.runtime.tasks import Tasks


@dataclass(slots=True)
class Current:
    """The version in force; one writer, read by whoever plans or tells."""

    pair: StreamPair
    config: RuntimeConfig
    revision: str

    @classmethod
    def first(cls, pair: StreamPair, config: RuntimeConfig) -> Current:
        return cls(pair, config, revision_of(pair))

    def take(self, pair: StreamPair, config: RuntimeConfig) -> None:
        self.pair, self.config, self.revision = pair, config, revision_of(pair)


def texts(file: Path, problems: list[Problem]) -> list[str]:
    """The problems as they are printed."""
    return [problem.format(str(file)) for problem in problems]


class EditTaker:
    """Owns the file: nobody else reads it after the start, and nobody else writes `current`."""

    def __init__(
        self,
        file: Path,
        overrides: watch.Overrides,
        current: Current,
        *,
        lanes: Lanes,
        router: Child,
        push: ConfigPush,
        ask_engine: Callable[[StreamPair], Awaitable[Answer]],
        tasks: Tasks,
        changed: Callable[[], None],
        echoed: Callable[[float], None],
        say: Callable[[str], None],
    ) -> None:
        self._file = file
        self._overrides = overrides
        self._current = current
        self._lanes = lanes
        self._router = router
        self._push = push
        self._ask_engine = ask_engine
        self._tasks = tasks
        self._changed = changed
        self._echoed = echoed
        self._say = say

    async def follow(self, content: bytes) -> None:
        async for edited in watch.watch(self._file, self._overrides, content):
            if isinstance(edited.version, list):
                self._refuse(texts(self._file, edited.version))
            else:
                await self._take_over(edited.version, edited.saved_at)

    def _refuse(self, problems: list[str] | tuple[str, ...]) -> None:
        self._say(f"the edit is refused, generation {self._current.config.id.generation} stays in force:")
        for problem in problems:
            self._say(f"  {problem}")

    async def _take_over(self, new: StreamPair, saved_at: float) -> None:
        verdict = edits.judge(self._current.pair, new)
        if verdict.nothing:
            self._overrides.taken_over()
            self._say("the file was saved, no setting has changed")
            return
        refused = verdict.refused
        if not refused and (verdict.cold or verdict.scale):
            refused = await self._machine_refuses(new)
        if not refused and verdict.cold:
            refused = await self._engine_refuses(new)
        if refused:
            self._refuse(refused)
            return
        try:
            config = hot.runtime_config(new, self._current.config.id.uid, self._current.config.id.generation + 1)
        except hot.HotError as error:
            self._refuse([f"{self._file}: {error}"])
            return
        self._current.take(new, config)
        self._overrides.taken_over()
        self._tell(verdict)
        await self._push.write(config)
        self._tasks.spawn(f"echo/{config.id.generation}", self._prove(config, verdict, saved_at))
        self._changed()

    async def _machine_refuses(self, new: StreamPair) -> tuple[str, ...]:
        """A machine that cannot be looked at for a moment refuses nothing: what runs must not end for it."""
        try:
            return await asyncio.to_thread(self._obstacles, new)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread left
            self._say(f"could not look whether the machine has room for it, goes on without: {error}")
            return ()

    def _obstacles(self, new: StreamPair) -> tuple[str, ...]:
        """The pre-flight of a running fleet: what runs already is counted, its ports are ours."""
        facts = preflight.gather(new, {})
        running = len(self._lanes.children)
        if trouble := preflight.memory_problem(new, facts.free_bytes, facts.cpu_engines, running_engines=running):
            return (trouble,)
        return tuple(preflight.problems(new, _without_memory(facts)))

    async def _engine_refuses(self, new: StreamPair) -> tuple[str, ...]:
        """Before a lane is drained for engines that would not start."""
        if not engine_check.is_new(self._current.pair, new):
            return ()
        self._say("asks vLLM about the engine arguments; this takes about 20 s, and nothing is stopped for it")
        answer = await self._ask_engine(new)
        if answer.unknown:
            self._say(f"the engine arguments could not be checked, goes on without: {answer.unknown}")
        return answer.refused

    def _tell(self, verdict: Verdict) -> None:
        generation = f"generation {self._current.config.id.generation}"
        if verdict.cold:
            self._say(
                f"{generation}: cold, replaces lane after lane (revision {self._current.revision}): {verdict.cold}"
            )
        if verdict.scale:
            self._say(f"{generation}: scale: {verdict.scale}")
        if verdict.idle:
            self._say(f"{generation}: without effect on one machine: {verdict.idle}")

    async def _prove(self, config: RuntimeConfig, verdict: Verdict, saved_at: float) -> None:
        """Wait for the echo of everyone who stays and say how long it took. Lanes that a cold edit replaces anyway are
        not waited for."""
        workers = self._lanes.addresses(revision=self._current.revision if verdict.cold else None)
        routers = {"router": str(self._router.info["grpc"])} if self._router.up else {}
        before = time.monotonic() - saved_at
        echo = await self._push.echo(config.id, workers, routers, push.ECHO_SECONDS)
        seconds = before + echo.seconds
        took = f"{seconds * 1e3:.0f} ms"
        what = f": {verdict.hot}" if verdict.hot else ""
        count = f"generation {config.id.generation} on {len(echo.applied)} of {len(echo.wanted)} in {took}{what}"
        if not echo.missing:
            self._echoed(seconds)
            self._say(f"applied {count}")
            return
        if self._current.config.id.generation != config.id.generation:
            return
        self._say(f"NOT everywhere: applied {count}")
        for name in echo.missing:
            self._say(f"  {name}: {echo.refused.get(name, 'has not answered; it reads the file when it can')}")


def _without_memory(facts: preflight.Facts) -> preflight.Facts:
    return replace(facts, free_bytes=2**62)
