"""Which dispatches this worker has seen: the highest sequence of each router, for the sixteen that spoke last.

A router books the work it sends at once and takes the booking back when the worker's own signals include it. It knows
that they do when the sequence here is at least the dispatch's: no clocks are compared.
"""

from __future__ import annotations

from collections import OrderedDict

from streamserve.contract.signals import MAX_ACKS, Ack


class Acks:
    def __init__(self, limit: int = MAX_ACKS) -> None:
        self._limit = limit
        self._highest: OrderedDict[int, int] = OrderedDict()

    def admit(self, router_id: int, sequence: int) -> None:
        """Remember a dispatch; late ones change nothing but how recently the router spoke."""
        self._highest[router_id] = max(sequence, self._highest.get(router_id, 0))
        self._highest.move_to_end(router_id)
        if len(self._highest) > self._limit:
            self._highest.popitem(last=False)

    def latest(self) -> tuple[Ack, ...]:
        """Most recent router first."""
        return tuple(Ack(router, sequence) for router, sequence in reversed(self._highest.items()))
