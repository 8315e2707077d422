"""When a stream of a router carries a load report."""

from __future__ import annotations

from typing import Final

from streamserve.contract.keys import SIGNALS_MIN_INTERVAL_SECONDS

_MAX_ROUTERS: Final = 64


class ReportPacing:
    """Every 50 ms for each router, not for each stream."""

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
