"""Child processes: started, watched, started again when they die, stopped in time.

A child has its own session, so that Ctrl-C on the terminal reaches only us and its whole group can be killed. After a
death its group is swept (a vLLM engine core may outlive its parent) and it is started again after a backoff of
0.5 s to 30 s, which is forgotten after 60 s of health; a start that the machine refuses counts as a death. Output goes
to a file opened for appending; one that has grown past LOG_BYTES is copied to `.1` and emptied.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any, Final

from streamserve.cli.up import commands
from streamserve.cli.up.commands import Command
from streamserve.cli.up.last_words import words_of
from streamserve.cli.up.reaper import signal_group
from streamserve.runtime.backoff import Backoff
from streamserve.runtime.errors import EngineRefused

BACKOFF_SECONDS: Final = 0.5
BACKOFF_CAP_SECONDS: Final = 30.0
HEALTHY_SECONDS: Final = 60.0
LOG_BYTES: Final = 8 * 1024 * 1024
_POLL_SECONDS: Final = 0.05


class State(StrEnum):
    STARTING = "starting"
    UP = "up"
    WAITING = "waiting"
    STOPPED = "stopped"


class Reaper:
    """The process that ends our children when we are killed; started again should somebody kill it."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *commands.reaper(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        for group in self._groups:
            self._tell(f"+{group}\n")

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            if self._process is None or self._process.returncode is not None:
                # The machine may refuse it for a while; nobody would start it later.
                with contextlib.suppress(OSError):
                    await self.start()
            if self._process is not None:
                await self._process.wait()
            await asyncio.sleep(0.1)

    def add(self, group: int) -> None:
        self._groups.add(group)
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._groups.discard(group)
        self._tell(f"-{group}\n")

    async def stop(self) -> None:
        """The end of its input ends it; it ends whatever group is left."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5.0)
        except TimeoutError:
            self._process.kill()

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(line.encode())


class Child:
    """One process that should run. `changed` is called at every change of its state."""

    def __init__(
        self,
        command: Command,
        *,
        log: Path,
        environment: Mapping[str, str],
        reaper: Reaper,
        rng: Random,
        changed: Callable[[], None],
        say: Callable[[str], None],
        restarted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.command = command
        self.log = log
        self.state = State.STOPPED
        self.info: dict[str, Any] = {}
        self.pid = 0
        self.started_at = 0.0
        self.restarts = 0
        # Deaths since it was last up for HEALTHY_SECONDS, or since its owner cleared them.
        self.failures = 0
        # Why another start would end the same way, where it has said so.
        self.refusal = ""
        self._environment = environment
        self._reaper = reaper
        self._backoff = Backoff(BACKOFF_SECONDS, BACKOFF_CAP_SECONDS, rng)
        self._changed = changed
        self._say = say
        self._restarted = restarted
        # What it said of its last death. Kept, as the next start writes over the end of the log.
        self.last_words = ""
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def up(self) -> bool:
        return self.state is State.UP

    def start(self) -> None:
        self.started_at = time.monotonic()
        self._set(State.STARTING)
        self._task = asyncio.create_task(self._run(), name=f"child/{self.name}")

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                status = await self._once()
                how, words = describe_exit(status), words_of(self.log)
            except OSError as error:
                # No memory, too many processes or files, the log's folder gone: it may pass, and must be said.
                status, how, words = 0, f"could not be started: {error}", str(error)
            if self._stopping.is_set():
                break
            self.failures += 1
            self.restarts += 1
            self.last_words = words
            self._restarted(self.name)
            if status == EngineRefused.exit_status:
                self.refusal = words.removeprefix("error: ")
            delay = self._backoff.next()
            self._say(f"{self.name}: {how}; starts again in {delay:.1f} s{self._said(how, words)}")
            self._set(State.WAITING)
            await _sleep_unless(self._stopping, delay)
        self._set(State.STOPPED)

    async def _once(self) -> int:
        """Start it, wait for its end, sweep its group. Returns its exit status."""
        if self.command.ready_file is not None:
            self.command.ready_file.unlink(missing_ok=True)
        self.info = {}
        self.started_at = time.monotonic()
        with self.log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *self.command.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**self._environment, **self.command.environment},
                start_new_session=True,
            )
        self._process = process
        self.pid = process.pid
        self._reaper.add(process.pid)
        self._set(State.STARTING)
        if self._stopping.is_set():
            signal_group(process.pid, signal.SIGTERM)
        try:
            ended = asyncio.ensure_future(process.wait())
            await self._until_up(ended)
            healthy_from = time.monotonic()
            status = await ended
            if self.up and time.monotonic() - healthy_from > HEALTHY_SECONDS:
                self._backoff.reset()
                self.failures = 0
            return status
        finally:
            signal_group(process.pid, signal.SIGKILL)
            self._reaper.remove(process.pid)
            self.pid = 0

    async def _until_up(self, ended: asyncio.Future[int]) -> None:
        ready = self.command.ready_file
        while not ended.done():
            if ready is None:
                self._set(State.UP)
                return
            try:
                self.info = json.loads(ready.read_bytes())
            except (OSError, ValueError):
                await asyncio.wait([ended], timeout=_POLL_SECONDS)
                continue
            self._set(State.UP)
            return

    async def stop(self, grace_seconds: float, hurry: asyncio.Event | None = None) -> None:
        """SIGTERM, then SIGKILL to the whole group when the grace is over or there is a hurry. Idempotent."""
        self._stopping.set()
        if self._task is None:
            return
        if self.pid and self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        waits: list[asyncio.Future[Any]] = [self._task]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waits, timeout=grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        for extra in waits[1:]:
            extra.cancel()
        if not self._task.done():
            if self.pid:
                signal_group(self.pid, signal.SIGKILL)
            await asyncio.wait([self._task], timeout=5.0)

    def _said(self, how: str, words: str) -> str:
        if words and words in how:
            return ""
        return f"; last words in {self.log}: {words}" if words else f"; log: {self.log}"

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._changed()


async def _sleep_unless(event: asyncio.Event, seconds: float) -> None:
    # Not wait_for: in Python 3.11 it loses a cancellation that comes with the event.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def describe_exit(status: int) -> str:
    if status == EngineRefused.exit_status:
        return "does not take its engine arguments"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def rotate(log: Path) -> None:
    """Keep one older part. Appending writers go on at the new end, so nothing has to be reopened."""
    try:
        if log.stat().st_size > LOG_BYTES:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
    except OSError:
        return
