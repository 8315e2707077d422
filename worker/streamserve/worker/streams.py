"""What lies between an engine's chunks and one client's stream: merging, a bound, and when to add a load report.

The first chunk is never delayed nor merged: it is the time to first token. After it, chunks that arrive while the
stream is still busy with one become a single message, so under load there are fewer and larger messages and at rest
none waits for another. A reader who does not read fills the buffer, then the engine's own; who takes nothing for
SLOW_READER_SECONDS is given up.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from streamserve.contract.errors import SlowConsumer, StreamServeError
from streamserve.contract.keys import SIGNALS_MIN_INTERVAL_SECONDS
from streamserve.worker.pipeserve.engine import Chunk

SLOW_READER_SECONDS: Final = 30.0
MAX_BUFFERED_TOKENS: Final = 1_024
_MAX_ROUTERS: Final = 64


def too_slow(seconds: float) -> SlowConsumer:
    return SlowConsumer(
        f"nothing of the stream was read for {seconds:g} s, so it was ended; read faster or ask for less"
    )


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


class ChunkBuffer:
    """One writer, one reader. Holds at most two chunks: the first one of the stream, and all later ones merged."""

    def __init__(self, max_tokens: int = MAX_BUFFERED_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._first: Chunk | None = None
        self._rest: Chunk | None = None
        self._started = False
        self._error: StreamServeError | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.merged = 0

    async def put(self, chunk: Chunk) -> None:
        """Add a chunk; waits while the buffer is full."""
        await self._room.wait()
        if not self._started:
            self._started = True
            self._first = chunk
        elif self._rest is None:
            self._rest = chunk
        else:
            self._rest = merge(self._rest, chunk)
            self.merged += 1
        if self._rest is not None and len(self._rest.token_ids) >= self._max_tokens:
            self._room.clear()
        self._filled.set()

    def fail(self, error: StreamServeError) -> None:
        """What was put stays readable; then `take` raises."""
        if self._error is None:
            self._error = error
        self._filled.set()

    async def take(self) -> Chunk:
        """The next chunk, as much as there is. Raises the error once everything before it was taken."""
        await self._filled.wait()
        chunk = self._first
        if chunk is not None:
            self._first = None
        else:
            chunk, self._rest = self._rest, None
            self._room.set()
        if chunk is None:
            if self._error is None:
                raise AssertionError("woken without a chunk or an error")
            raise self._error
        if self._first is None and self._rest is None and self._error is None:
            self._filled.clear()
        return chunk


class ReportPacing:
    """When a stream of a router carries a load report: every 50 ms for each router, not for each stream."""

    def __init__(self, interval_seconds: float = SIGNALS_MIN_INTERVAL_SECONDS) -> None:
        self._interval = interval_seconds
        self._sent: dict[int, float] = {}

    def due(self, router_id: int, now: float) -> bool:
        """True at most once in each interval; asking is sending."""
        if now - self._sent.get(router_id, -1e9) < self._interval:
            return False
        if router_id not in self._sent and len(self._sent) >= _MAX_ROUTERS:
            self._sent.pop(min(self._sent, key=lambda known: self._sent[known]))
        self._sent[router_id] = now
        return True
