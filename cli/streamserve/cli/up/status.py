"""What `up` tells: lines for everything that happens, and on a terminal one live line below them.

In a pipe each line begins with the time. While engines load their progress is told every PROGRESS_SECONDS.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

from streamserve.cli.fleet_view import Fleet

if TYPE_CHECKING:
    from rich.live import Live

PROGRESS_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Everything the live line shows. `loading` lists (process, seconds since its start)."""

    lanes: int
    ready: int
    generation: int
    loading: tuple[tuple[str, float], ...] = ()
    fleet: Fleet | None = None
    halted: str = ""


class Reporter:
    """Writes to `out`; live only where that is a terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._live: Live | None = None
        self._told: tuple[tuple[str, ...], float] = ((), 0.0)
        if self._out.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._out, highlight=False), auto_refresh=False, transient=True)
            self._live.start()

    def say(self, text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} {text}"
        with self._unheard():
            if self._live is not None:
                self._live.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=self._out, flush=True)

    def show(self, standing: Standing) -> None:
        if self._live is not None:
            from rich.text import Text

            with self._unheard():
                self._live.update(Text(live_line(standing), overflow="ellipsis", no_wrap=True), refresh=True)
            return
        names, now = tuple(name for name, _ in standing.loading), time.monotonic()
        if names and now - self._told[1] >= PROGRESS_SECONDS:
            self._told = (names, now)
            for line in progress(standing.loading):
                self.say(line)

    def close(self) -> None:
        if self._live is not None:
            with self._unheard():
                self._live.stop()
            self._live = None

    def _unheard(self) -> contextlib.suppress:
        """A terminal or pipe that was closed must not end what is served, nor break an orderly stop."""
        return contextlib.suppress(OSError)


def progress(loading: Iterable[tuple[str, float]]) -> list[str]:
    """`lane-0-decode-0: loading, 12 s`"""
    return [f"{name}: loading, {seconds:.0f} s" for name, seconds in loading]


def live_line(standing: Standing) -> str:
    """`2 of 2 lanes ready · 6 running, 0 queued · ≈412 tokens/s · depth 3 6 · config 2`"""
    parts = [f"{standing.ready} of {standing.lanes} lanes ready"]
    parts += progress(standing.loading)[:4]
    fleet = standing.fleet
    if fleet is not None:
        parts.append(f"{fleet.running_requests} running, {fleet.queued_requests} queued")
        parts.append(f"≈{fleet.tokens_per_second:.0f} tokens/s")
        depths = [
            str(worker.signals.depth)
            for lane in fleet.lanes
            for worker in lane.workers
            if worker.role == "decode" and worker.signals is not None
        ]
        if depths:
            parts.append("depth " + " ".join(depths))
        if not fleet.redis_connected:
            parts.append("Redis is away")
    parts.append(f"config {standing.generation}")
    if standing.halted:
        parts.append(f"rollout halted: {standing.halted}")
    return " · ".join(parts)
