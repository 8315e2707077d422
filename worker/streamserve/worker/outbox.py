"""What lies between engines' chunks and one stream that carries them: merging, a bound, and pauses.

A chunk that finds its call's earlier one still unsent is added to it, so under load there are fewer and larger messages
and at rest none waits for another. A reader who does not read fills the part of each call, then the engine's own queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from streamserve.v1 import worker_pb2
from streamserve.worker.pipeserve.engine import Chunk

MAX_BUFFERED_TOKENS: Final = 1_024

Load = Callable[[], worker_pb2.LoadReport]
"""Asked when its chunk is sent: until then the call is open, though the engine has let go of its request."""


def merge(first: Chunk, second: Chunk) -> Chunk:
    """Two neighbours as one. Raises ValueError when a position would be missing or twice."""
    if second.first_token_index != first.first_token_index + len(first.token_ids):
        raise ValueError(
            f"a chunk at position {second.first_token_index} does not follow "
            f"{first.first_token_index}+{len(first.token_ids)}"
        )
    return replace(
        second,
        first_token_index=first.first_token_index,
        token_ids=[*first.token_ids, *second.token_ids],
        text=first.text + second.text,
        logprobs=(*first.logprobs, *second.logprobs),
    )


@dataclass(slots=True, eq=False)
class Part:
    """Of one call, since the last message."""

    chunk: Chunk | None = None
    load: Load | None = None
    ended: bool = False
    error: bytes = b""

    @property
    def tokens(self) -> int:
        return 0 if self.chunk is None else len(self.chunk.token_ids)


class Outbox:
    """Many writers, one reader. For each call at most one part, to which its chunks are added until it is taken."""

    def __init__(self, max_tokens: int = MAX_BUFFERED_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._parts: dict[int, Part] = {}
        self._held: dict[int, Part] = {}
        self._paused: set[int] = set()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False
        self.merged = 0

    async def put(self, call: int, chunk: Chunk) -> None:
        """Add a chunk; waits while the call's part is full."""
        while self._part(call).tokens >= self._max_tokens:
            await self._taken()
        part = self._part(call)
        if part.chunk is None:
            part.chunk = chunk
        else:
            part.chunk = merge(part.chunk, chunk)
            self.merged += 1
        self._fill(call)

    async def put_last(self, call: int, chunk: Chunk, load: Load) -> None:
        """The chunk with the outcome, and the call's end; waits until it is taken: until then the call is not over."""
        await self.put(call, chunk)
        part = self._part(call)
        part.load, part.ended = load, True
        while part in (self._parts.get(call), self._held.get(call)):
            await self._taken()

    def end(self, call: int, error: bytes = b"") -> None:
        """Nothing follows for this call; what was put is sent first. An answer that is whole stays one: no error that
        comes while it waits for its reader is added to it."""
        part = self._part(call)
        if not part.ended:
            part.ended, part.error = True, error
        # The end of an answer is what its reader waits for, however slowly.
        self.resume(call)
        self._fill(call)

    def drop(self, call: int) -> None:
        """Forget the call and what was put for it."""
        self._paused.discard(call)
        self._parts.pop(call, None)
        self._held.pop(call, None)
        self._room.set()

    def pause(self, call: int) -> None:
        self._paused.add(call)
        if (part := self._parts.pop(call, None)) is not None:
            self._held[call] = part

    def resume(self, call: int) -> None:
        self._paused.discard(call)
        if (part := self._held.pop(call, None)) is not None:
            self._parts[call] = part
            self._filled.set()

    def close(self) -> None:
        """What was put is still taken."""
        self._closed = True
        self._filled.set()

    async def take(self) -> dict[int, Part]:
        """All parts there are, at least one; empty once it is closed and nothing is left."""
        while not self._parts and not self._closed:
            self._filled.clear()
            await self._filled.wait()
        parts, self._parts = self._parts, {}
        self._room.set()
        return parts

    async def _taken(self) -> None:
        """Something was."""
        self._room.clear()
        await self._room.wait()

    def _part(self, call: int) -> Part:
        where = self._held if call in self._paused else self._parts
        return where.get(call) or where.setdefault(call, Part())

    def _fill(self, call: int) -> None:
        if call not in self._paused:
            self._filled.set()
