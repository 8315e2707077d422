"""Who may wait for workers, in which order, and until when. A bounded queue without a clock of its own.

    order      higher priority first, then the earlier deadline, then the earlier arrival
    full       more than maxQueuedRequests or maxQueuedTokens: Overloaded, with the time after which to come back
    late       the deadline is over: DeadlineExceeded; nothing is started for it
    infeasible expected wait + predicted time to first token + certain tokens x time per token > time left, where a
               wait for a slot of the engine is reckoned with twice its spread (flowguard/cost.py):
               InfeasibleDeadline; it is refused before work is wasted on it
    too long   waited maxQueueMilliseconds: Overloaded

Expected wait is work ahead / measured rate, for requests and for prompt tokens, whichever is longer. RetryInfo is that
time over the whole queue, with 20 % of jitter to both sides so that the refused do not come back together. The rates
are exponentially weighted over RATE_SECONDS. Only time in which somebody waits counts, for the rest says how much is
asked of the fleet, not how much it can do. Of what went to its workers at once the last AT_ONCE count, without time:
the first that has to wait, a small one perhaps, must not be the measure of all. Bounds are read at each call: they are
hot.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

from streamserve.contract.errors import DeadlineExceeded, InfeasibleDeadline, Overloaded, StreamServeError
from streamserve.contract.runtime_config import AdmissionConfig

RATE_SECONDS: Final = 10.0
AT_ONCE: Final = 8
MIN_RETRY_SECONDS: Final = 0.1
MAX_RETRY_SECONDS: Final = 60.0
UNKNOWN_RETRY_SECONDS: Final = 1.0
JITTER: Final = 0.2
SPARE_DEADLINES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One place in the queue. `number` is unique; tickets compare by their order in the queue."""

    number: int
    tokens: int
    arrival_seconds: float
    deadline_seconds: float
    priority: int = 0

    @property
    def key(self) -> tuple[int, float, float, int]:
        return (-self.priority, self.deadline_seconds, self.arrival_seconds, self.number)


@dataclass(slots=True)
class _Rate:
    """Events per second: sums that decay with RATE_SECONDS, over the time that they cover.

    Both decay alike, so a pause changes no rate; what is measured after it counts for more.
    """

    amount: float = 0.0
    covered_seconds: float = 0.0
    last_seconds: float = 0.0

    def add(self, amount: float, covered_seconds: float, now: float, *, at_once: bool) -> None:
        decay = math.exp(-max(0.0, now - self.last_seconds) / RATE_SECONDS)
        if at_once:
            decay = min(decay, 1.0 - 1.0 / AT_ONCE)
        self.amount = self.amount * decay + amount
        self.covered_seconds = self.covered_seconds * decay + covered_seconds
        self.last_seconds = now

    @property
    def per_second(self) -> float:
        return self.amount / self.covered_seconds if self.covered_seconds > 0.0 else 0.0


@dataclass(slots=True)
class AdmissionQueue:
    """The queue of one router. Every method takes the time; none waits."""

    rng: Random
    requests: int = 0
    tokens: int = 0
    _order: list[tuple[tuple[int, float, float, int], Ticket]] = field(default_factory=list)
    _deadlines: list[tuple[float, int, Ticket]] = field(default_factory=list)
    _arrivals: deque[Ticket] = field(default_factory=deque)
    _waiting: set[int] = field(default_factory=set)
    # Since when somebody has waited without a break, and until when that time is in the rates.
    _busy_since_seconds: float = 0.0
    _counted_seconds: float = 0.0
    _request_rate: _Rate = field(default_factory=_Rate)
    _token_rate: _Rate = field(default_factory=_Rate)

    def offer(self, ticket: Ticket, now: float, bounds: AdmissionConfig, *, again: bool = False) -> None:
        """Take the ticket in. `again`: it was admitted before and comes back for a retry, so bounds do not apply.

        Raises DeadlineExceeded, InfeasibleDeadline or Overloaded.
        """
        if ticket.deadline_seconds <= now:
            raise deadline_passed()
        if not again:
            self._check_room(ticket, now, bounds)
        if not self._waiting:
            self._busy_since_seconds = self._counted_seconds = now
        insort(self._order, (ticket.key, ticket), key=lambda entry: entry[0])
        self._waiting.add(ticket.number)
        self._keep_deadline(ticket)
        self._arrivals.append(ticket)
        self.requests += 1
        self.tokens += ticket.tokens

    def _keep_deadline(self, ticket: Ticket) -> None:
        """Those of tickets that have gone are dropped when they are most: a deadline may lie half an hour off."""
        heapq.heappush(self._deadlines, (ticket.deadline_seconds, ticket.number, ticket))
        if len(self._deadlines) > 2 * len(self._waiting) + SPARE_DEADLINES:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._waiting]
            heapq.heapify(self._deadlines)

    def _check_room(self, ticket: Ticket, now: float, bounds: AdmissionConfig) -> None:
        if self.requests >= bounds.max_queued_requests:
            raise self._overloaded(f"{self.requests} requests wait already", "QUEUE_FULL")
        if self.requests and self.tokens + ticket.tokens > bounds.max_queued_tokens:
            raise self._overloaded(f"{self.tokens} prompt tokens wait already", "QUEUE_FULL")
        wait = self.wait_seconds(ahead_of=ticket)
        left = ticket.deadline_seconds - now
        if wait > left:
            raise infeasible(wait, left, self.retry_after_seconds())

    def in_order(self) -> Iterator[Ticket]:
        """Who waits, first to be served first. A snapshot: tickets may be removed while it is read."""
        return iter([ticket for _, ticket in self._order])

    def expired(self, now: float, bounds: AdmissionConfig) -> list[tuple[Ticket, StreamServeError]]:
        """Take out those whose time is over, and why."""
        out: list[tuple[Ticket, StreamServeError]] = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self._waiting):
            ticket = heapq.heappop(self._deadlines)[2]
            if self.remove(ticket):
                out.append((ticket, deadline_passed()))
        max_wait = bounds.max_queue_ms / 1000.0
        while self._arrivals and (
            self._arrivals[0].number not in self._waiting or self._arrivals[0].arrival_seconds + max_wait <= now
        ):
            ticket = self._arrivals.popleft()
            if self.remove(ticket):
                out.append((ticket, self._overloaded(f"no worker was free for {max_wait:g} s", "QUEUE_TIMEOUT")))
        return out

    def next_expiry_seconds(self, bounds: AdmissionConfig) -> float | None:
        """When `expired` should be asked again; None while nobody waits."""
        if not self._waiting:
            return None
        oldest = self._arrivals[0].arrival_seconds + bounds.max_queue_ms / 1000.0 if self._arrivals else math.inf
        return min(self._deadlines[0][0] if self._deadlines else math.inf, oldest)

    def remove(self, ticket: Ticket) -> bool:
        """True when it was waiting."""
        if ticket.number not in self._waiting:
            return False
        self._waiting.discard(ticket.number)
        at = bisect_left(self._order, ticket.key, key=lambda entry: entry[0])
        del self._order[at]
        self.requests -= 1
        self.tokens -= ticket.tokens
        return True

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """The ticket goes to its workers: out of the queue and into the rates."""
        if self.remove(ticket):
            at_once = now <= self._busy_since_seconds
            covered = now - self._counted_seconds
            self._counted_seconds = now
            self._request_rate.add(1.0, covered, now, at_once=at_once)
            self._token_rate.add(float(ticket.tokens), covered, now, at_once=at_once)

    def wait_seconds(self, ahead_of: Ticket) -> float:
        """Expected wait of a new ticket: the work before it over the rates; 0 while those are unknown."""
        ahead = bisect_left(self._order, ahead_of.key, key=lambda entry: entry[0])
        if ahead == 0:
            return 0.0
        share = ahead / self.requests
        return share * self._drain_seconds()

    def retry_after_seconds(self) -> float:
        """Time until what waits now will have been served, with jitter."""
        drain = self._drain_seconds() or UNKNOWN_RETRY_SECONDS
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, drain)) * self.rng.uniform(1 - JITTER, 1 + JITTER)

    def _drain_seconds(self) -> float:
        by_request = self.requests / rate if (rate := self._request_rate.per_second) > 0.0 else 0.0
        by_token = self.tokens / rate if (rate := self._token_rate.per_second) > 0.0 else 0.0
        return max(by_request, by_token)

    def _overloaded(self, why: str, reason: str) -> Overloaded:
        wait = self.retry_after_seconds()
        return Overloaded(f"{why}; try again in {wait:.1f} s, or add lanes", reason=reason, retry_after_seconds=wait)


def deadline_passed() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the request could start; allow more time")


def infeasible(needed_seconds: float, left_seconds: float, retry_after_seconds: float) -> InfeasibleDeadline:
    return InfeasibleDeadline(
        f"needs about {needed_seconds:.2f} s and {max(0.0, left_seconds):.2f} s are left, so nothing was started; "
        "allow more time or try again later",
        retry_after_seconds=retry_after_seconds,
    )
