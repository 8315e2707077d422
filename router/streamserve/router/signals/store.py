"""The newest signals of one worker, whichever way they came: Redis, in band, or asked for.

A higher epoch of the same boot wins; an equal or lower one changes nothing, and does not make the value younger. A
new boot replaces everything, and what a boot that was replaced left behind changes nothing. Only which of two boots is
met first is known, not which started first, so one that was taken for replaced is taken back when its epochs go on
while the one in force has been silent for COMEBACK_SECONDS. Garbage is counted and otherwise ignored.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, auto
from typing import Final

from streamserve.contract import signals as codec
from streamserve.contract.signals import Role, SignalsError, WorkerSignals
from streamserve.router.flowguard.view import NEVER

REMEMBERED_BOOTS: Final = 8
COMEBACK_SECONDS: Final = 5.0


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
        # The highest epoch heard of each boot that was replaced; None before any. The earliest replaced comes first.
        self._replaced: OrderedDict[int, int | None] = OrderedDict()

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
        new_boot = self.restarted(signals.boot_id) or self._comes_back(signals, now_seconds)
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
        self._replace(boot_id)
        return True

    def _comes_back(self, signals: WorkerSignals, now_seconds: float) -> bool:
        """Whether a boot that was taken for replaced is the one that runs: it alone still speaks."""
        if signals.boot_id not in self._replaced:
            return False
        heard, self._replaced[signals.boot_id] = self._replaced[signals.boot_id], signals.epoch
        goes_on = heard is not None and signals.epoch > heard
        # One that has not spoken yet may be loading.
        silent = self.signals is not None and now_seconds - self.seen_at_seconds > COMEBACK_SECONDS
        if not (goes_on and silent):
            return False
        del self._replaced[signals.boot_id]
        self._replace(signals.boot_id)
        return True

    def _replace(self, boot_id: int) -> None:
        if self.boot_id:
            self._replaced[self.boot_id] = self.signals.epoch if self.signals is not None else None
            if len(self._replaced) > REMEMBERED_BOOTS:
                self._replaced.popitem(last=False)
        self.boot_id = boot_id
        self.signals, self.raw, self.seen_at_seconds = None, b"", NEVER

    def _quarantine(self, why: str) -> Offer:
        self.quarantined += 1
        self.last_garbage = why
        return Offer.GARBAGE
