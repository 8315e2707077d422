"""This router's own work on one worker, counted from the moment it was decided.

Every dispatch has a sequence number that rises by one; the worker echoes the highest it has admitted (`ack`). What is
above the ack is not in the worker's signals yet, so it is added to them: reserve on pick, no clocks compared. A
booking is released when its request has left the worker, acknowledged or not.
"""

from __future__ import annotations

from collections.abc import Callable

from streamserve.contract.signals import WorkerSignals
from streamserve.v1 import worker_pb2


class Ledger:
    """The bookings on one worker."""

    def __init__(self, router_id: int) -> None:
        self._router_id = router_id
        self._sequence = 0
        self._unseen: dict[int, int] = {}
        self._unseen_tokens = 0
        self.own_requests = 0

    @property
    def booked_requests(self) -> int:
        return len(self._unseen)

    @property
    def booked_tokens(self) -> int:
        return self._unseen_tokens

    def book(self, tokens: int) -> int:
        """The sequence number of a new booking."""
        self._sequence += 1
        self._unseen[self._sequence] = tokens
        self._unseen_tokens += tokens
        self.own_requests += 1
        return self._sequence

    def release(self, sequence: int) -> None:
        self.own_requests -= 1
        self._forget(sequence)

    def acknowledge(self, signals: WorkerSignals) -> None:
        """Forget what these signals already show."""
        for ack in signals.acks:
            if ack.router_id == self._router_id:
                for sequence in [s for s in self._unseen if s <= ack.sequence]:
                    self._forget(sequence)

    def restarted(self) -> None:
        """A new start of the worker knows nothing of what the old one was sent."""
        self._unseen.clear()
        self._unseen_tokens = 0

    def _forget(self, sequence: int) -> None:
        self._unseen_tokens -= self._unseen.pop(sequence, 0)


class Booking:
    """`dispatch` goes into the request; `release` when the request has left the worker, as often as you like."""

    __slots__ = ("_changed", "_ledger", "_released", "dispatch", "worker_id")

    def __init__(
        self, worker_id: str, ledger: Ledger, router_id: int, tokens: int, changed: Callable[[], None]
    ) -> None:
        self.worker_id = worker_id
        self.dispatch = worker_pb2.Dispatch(router_id=router_id, sequence=ledger.book(tokens))
        self._ledger = ledger
        self._released = False
        self._changed = changed

    def release(self) -> None:
        if self._released:
            return
        self._released = True
        self._ledger.release(self.dispatch.sequence)
        self._changed()
