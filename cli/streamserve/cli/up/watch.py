"""The StreamPair file while `up` runs: every saved version once, valid or with its problems.

An editor may write in place or rename over the file, and the file may be a link. The folder is watched; what counts is
that the bytes differ. An in-place save can be read half-written, so a version with problems is read again after
SETTLE_SECONDS before it is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import watchfiles

from streamserve.contract import streampair
from streamserve.contract.streampair import Problem, StreamPair, load_file
from streamserve.contract.streampair.enums import EngineKind

SETTLE_SECONDS: Final = 0.08
# Longer than an editor takes between its unlink and its rename.
GONE_SECONDS: Final = 1.0
# A change time further back than this is a clock that was set, or a file that came with its times.
_CREDIBLE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Edited:
    """One saved version; `saved_at` is when, on the monotonic clock, as far as the file system tells."""

    version: StreamPair | list[Problem]
    saved_at: float


@dataclass(slots=True)
class Overrides:
    """What the command line says over the file. `lanes` holds until an edit of the file's own value is taken over."""

    engine: str | None = None
    lanes: int | None = None
    _first_lanes: int | None = None
    _last_lanes: int | None = None

    def apply(self, pair: StreamPair) -> StreamPair:
        spec = pair.spec
        if self.engine is not None and self.engine != spec.engine.kind.value:
            engine = spec.engine.model_copy(update={"kind": EngineKind(self.engine)})
            spec = spec.model_copy(update={"engine": engine})
        self._last_lanes = pair.spec.lanes
        if self._first_lanes is None:
            self._first_lanes = pair.spec.lanes
        if self.lanes is not None and pair.spec.lanes == self._first_lanes:
            spec = spec.model_copy(update={"lanes": self.lanes})
        return pair.model_copy(update={"spec": spec})

    def taken_over(self) -> None:
        """What `apply` saw last is in force: with other lanes than at first the file has the word from now on."""
        if self._last_lanes != self._first_lanes:
            self.lanes = None


def read(file: Path, overrides: Overrides) -> StreamPair | list[Problem]:
    """The pair in the file under the command line's overrides, or its problems."""
    loaded = load_file(file)
    return loaded if isinstance(loaded, list) else overrides.apply(loaded)


def parse(content: bytes, file: Path, overrides: Overrides) -> StreamPair | list[Problem]:
    """The same for bytes that were read from the file."""
    loaded = streampair.read(content)
    if loaded.pair is None:
        return list(loaded.problems)
    resolved = streampair.resolve_model_paths(loaded.pair, file.parent, loaded.document.where)
    return resolved if isinstance(resolved, list) else overrides.apply(resolved)


async def watch(file: Path, overrides: Overrides, seen: bytes) -> AsyncIterator[Edited]:
    """Every version after the one whose bytes are `seen`; a file that stays away is told once. Ends when cancelled."""
    gone_since: float | None = None
    gone_told = False
    async for _ in watchfiles.awatch(
        *_folders(file), recursive=False, step=10, debounce=30, rust_timeout=500, yield_on_timeout=True
    ):
        content = _bytes_of(file)
        if content is None:
            now = time.monotonic()
            gone_since = now if gone_since is None else gone_since
            if now - gone_since >= GONE_SECONDS and not gone_told:
                gone_told = True
                yield Edited([Problem("", 1, 1, "cannot be read any more: put it back, `up` goes on reading it")], now)
            continue
        gone_since, gone_told = None, False
        if content == seen:
            continue
        saved_at = _saved_at(file)
        version = parse(content, file, overrides)
        if isinstance(version, list):
            await asyncio.sleep(SETTLE_SECONDS)
            content = _bytes_of(file)
            if content is None or content == seen:
                continue
            version = parse(content, file, overrides)
        seen = content
        yield Edited(version, saved_at)


def _bytes_of(file: Path) -> bytes | None:
    """None between an editor's unlink and its rename."""
    try:
        return file.read_bytes()
    except OSError:
        return None


def _folders(file: Path) -> set[Path]:
    return {file.absolute().parent, file.resolve().parent}


def _saved_at(file: Path) -> float:
    now = time.monotonic()
    try:
        ago = time.time() - file.stat().st_ctime
    except OSError:
        return now
    return now - ago if 0 <= ago <= _CREDIBLE_SECONDS else now
