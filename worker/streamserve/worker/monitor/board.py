"""The worker's latest signals, for every way on which they leave: Redis, load reports on streams, GetState.

One counter of epochs for all of them, so that a reader orders what it gets by whichever way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streamserve.contract import signals as codec
from streamserve.contract.signals import WorkerSignals


class SignalBoard:
    """`take(epoch)` samples the worker now; it must be cheap and must not wait."""

    def __init__(self, take: Callable[[int], WorkerSignals]) -> None:
        self._take = take
        self._epoch = 0
        self._shown: WorkerSignals | None = None
        self.changed = asyncio.Event()

    def touch(self) -> None:
        """Something happened that readers want to know soon."""
        self.changed.set()

    def fresh(self) -> bytes:
        """The signals of this moment, packed, under an epoch of their own."""
        self._epoch += 1
        self._shown = self._take(self._epoch)
        return codec.encode(self._shown)

    def differs_from(self, published: WorkerSignals | None) -> bool:
        """True when the worker now says something else than `published`, epochs aside."""
        return published is None or self._take(published.epoch) != published

    @property
    def shown(self) -> WorkerSignals | None:
        return self._shown
