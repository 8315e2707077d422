"""This router's own work on one worker, counted from the moment it was decided.

Every dispatch gets a sequence number as it is sent, higher than any that this router has given; the worker echoes the
highest it has admitted (`ack`). What is not sent yet, or is above the ack, is not in the worker's signals, so it is
added to them: reserve on pick, no clocks compared. A number of the pick's would be no use: a decode worker gets a
request when its prompt is computed, a short one long before the long one that was picked first.
A booking is released when its request has left the worker, acknowledged or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from streamserve.contract.signals import WorkerSignals
from streamserve.v1 import worker_pb2


class Ledger:
    """The bookings on one worker.

    `numbers` are those of the whole router: a worker that was away long enough to be forgotten comes back with the
    highest that it ever admitted, which a count of its own would begin below.
    """

    def __init__(self, router_id: int, numbers: Iterator[int] | None = None) -> None:
        self._router_id = router_id
        self._numbers = numbers if numbers is not None else count(1)
        self._unsent = 0
        # Tokens of what was sent and is not seen yet, by sequence: the lowest comes first.
        self._unseen: dict[int, int] = {}
        self.booked_tokens = 0
        self.own_requests = 0

    @property
    def booked_requests(self) -> int:
        return self._unsent + len(self._unseen)

    def book(self, tokens: int) -> None:
        self._unsent += 1
        self.booked_tokens += tokens
        self.own_requests += 1

    def send(self, tokens: int) -> int:
        """A booking's request goes out now: its sequence number."""
        self._unsent -= 1
        sequence = next(self._numbers)
        self._unseen[sequence] = tokens
        return sequence

    def release(self, tokens: int, sequence: int | None) -> None:
        """`sequence`: None of a booking whose request was never sent."""
        self.own_requests -= 1
        if sequence is None:
            self._unsent -= 1
            self.booked_tokens -= tokens
        else:
            self._forget(sequence)

    def acknowledge(self, signals: WorkerSignals) -> None:
        """Forget what these signals already show."""
        for ack in signals.acks:
            if ack.router_id == self._router_id:
                while self._unseen and (lowest := next(iter(self._unseen))) <= ack.sequence:
                    self._forget(lowest)

    def restarted(self) -> None:
        """A new start of the worker knows nothing of what the old one was sent."""
        self.booked_tokens -= sum(self._unseen.values())
        self._unseen.clear()

    def _forget(self, sequence: int) -> None:
        self.booked_tokens -= self._unseen.pop(sequence, 0)


class Booking:
    """`dispatch` goes into the request as it is sent; `release` when it has left the worker, as often as you like."""

    __slots__ = ("_changed", "_ledger", "_released", "_router_id", "_sequence", "_tokens", "worker_id")

    def __init__(
        self, worker_id: str, ledger: Ledger, router_id: int, tokens: int, changed: Callable[[], None]
    ) -> None:
        self.worker_id = worker_id
        self._router_id = router_id
        self._ledger = ledger
        self._tokens = tokens
        self._sequence: int | None = None
        self._released = False
        self._changed = changed
        ledger.book(tokens)

    def dispatch(self) -> worker_pb2.Dispatch:
        """Numbered when this is asked for first: ask as the request goes out, no sooner."""
        if self._sequence is None:
            self._sequence = self._ledger.send(self._tokens)
        return worker_pb2.Dispatch(router_id=self._router_id, sequence=self._sequence)

    def release(self) -> None:
        if self._released:
            return
        self._released = True
        self._ledger.release(self._tokens, self._sequence)
        self._changed()
