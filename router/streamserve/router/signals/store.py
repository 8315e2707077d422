"""The newest signals of one worker, whichever way they came: Redis, in band, or asked for.

A higher epoch of the same boot wins; an equal or lower one changes nothing, and does not make the value younger. A
new boot replaces everything, and a boot that was replaced never comes back. Garbage is counted and otherwise ignored.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Final

from streamserve.contract import signals as codec
from streamserve.contract.signals import Role, SignalsError, WorkerSignals
from streamserve.router.flowguard.view import NEVER

REMEMBERED_BOOTS: Final = 8


class Offer(Enum):
    """What an offered value turned out to be."""

    FRESH = auto()
    NEW_BOOT = auto()
    OLD = auto()
    GARBAGE = auto()


class LatestSignals:
    """One worker's newest value and when its epoch was first seen, on this router's clock."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.boot_id = 0
        self.signals: WorkerSignals | None = None
        self.raw = b""
        self.seen_at_seconds = NEVER
        self.quarantined = 0
        self.last_garbage = ""
        self._replaced: deque[int] = deque(maxlen=REMEMBERED_BOOTS)

    def offer(self, raw: bytes, now_seconds: float) -> Offer:
        """Take `raw` if it is news."""
        if raw == self.raw:
            return Offer.OLD
        try:
            signals = codec.decode(raw)
        except SignalsError as error:
            return self._quarantine(str(error))
        if signals.role is not self.role:
            return self._quarantine(f"a {self.role.name.lower()} worker sent the signals of a {signals.role.name}")
        new_boot = self.restarted(signals.boot_id)
        if signals.boot_id != self.boot_id:
            return Offer.OLD
        if self.signals is not None and signals.epoch <= self.signals.epoch:
            return Offer.OLD
        first = self.signals is None
        self.signals, self.raw, self.seen_at_seconds = signals, raw, now_seconds
        return Offer.NEW_BOOT if new_boot or first else Offer.FRESH

    def restarted(self, boot_id: int) -> bool:
        """Note the boot that a worker has now. True when it is a new one: what was known of the old is dropped."""
        if boot_id in (0, self.boot_id) or boot_id in self._replaced:
            return False
        if self.boot_id:
            self._replaced.append(self.boot_id)
        self.boot_id = boot_id
        self.signals, self.raw, self.seen_at_seconds = None, b"", NEVER
        return True

    def _quarantine(self, why: str) -> Offer:
        self.quarantined += 1
        self.last_garbage = why
        return Offer.GARBAGE
