"""Which StreamPair is reconciled next: a queue of keys, each in it at most once and worked on by one worker at a time.

    due(key)    the earliest time that anybody asked for, but not before its backoff or its budget allow it
    backoff     base · 2^(n-1) seconds after the n-th failure in a row, half of it random, at most cap
    budget      `burst` runs at once and one in `refill_seconds` over the long run, whatever asks for them:
                a fight over a field with another controller, or a key that fails at once, costs a bounded part

A key that is asked for while it is worked on runs once more afterwards. `fresh` is for a spec that changed: it forgets
the failures of the one before. Pure but for the order of calls: the time is an argument, in seconds of one clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _State:
    """`due` is None while nobody has asked. `spent_until`: the budget's debt, as in the leaky bucket of ATM (GCRA)."""

    due: float | None = None
    running: bool = False
    failures: int = 0
    not_before: float = 0.0
    spent_until: float = 0.0


class KeyedQueue(Generic[K]):
    """See the module. Bound: one entry for each key that was asked for and not forgotten; `forget` what is gone."""

    def __init__(
        self,
        rng: Random,
        *,
        base_seconds: float = 0.25,
        cap_seconds: float = 60.0,
        burst: int = 20,
        refill_seconds: float = 0.5,
    ) -> None:
        self._rng = rng
        self._base_seconds = base_seconds
        self._cap_seconds = cap_seconds
        self._burst = burst
        self._refill_seconds = refill_seconds
        self._states: dict[K, _State] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0

    def add(self, key: K, now: float, *, after_seconds: float = 0.0) -> None:
        """Ask for `key`. Asking again changes nothing, unless it is for an earlier time."""
        state = self._states.setdefault(key, _State())
        self._ask(key, state, max(now + after_seconds, state.not_before))

    def fresh(self, key: K, now: float) -> None:
        """Ask for `key` although it is backing off: what it failed at is not wanted any more."""
        state = self._states.setdefault(key, _State())
        state.failures, state.not_before = 0, self._budget(state)
        self.add(key, now)

    def take(self, now: float) -> K | None:
        """The key that has waited longest, to be worked on until `done` or `failed`; None where none is due."""
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            state = self._states.get(key)
            if state is None or state.due != due or state.running:
                continue
            state.due, state.running = None, True
            state.spent_until = max(state.spent_until, now) + self._refill_seconds
            return key
        return None

    def done(self, key: K, now: float, *, again_seconds: float | None = None) -> None:
        """It went well. `again_seconds`: ask again after that long."""
        state = self._states.get(key)
        if state is None:
            return
        state.failures = 0
        self._rest(key, state, self._budget(state))
        if again_seconds is not None:
            self.add(key, now, after_seconds=again_seconds)

    def failed(self, key: K, now: float, *, at_least_seconds: float = 0.0) -> float:
        """It did not. Asks again by itself; returns after how many seconds."""
        state = self._states.get(key)
        if state is None:
            return 0.0
        state.failures += 1
        ceiling = min(self._cap_seconds, self._base_seconds * 2.0 ** min(state.failures - 1, 32))
        wait = max(at_least_seconds, self._rng.uniform(ceiling / 2, ceiling))
        self._rest(key, state, max(now + wait, self._budget(state)))
        self.add(key, now)
        return state.not_before - now

    def restart(self, now: float) -> None:
        """Let what is due count as due from now on: until now nobody was there to take it."""
        for key, state in self._states.items():
            if state.due is not None and state.due < now:
                state.due = now
                if not state.running:
                    self._push(now, key)

    def forget(self, key: K) -> None:
        self._states.pop(key, None)

    def next_due_seconds(self, now: float) -> float | None:
        """How long until `take` may have something; None while nothing is asked for."""
        while self._heap:
            due, _, key = self._heap[0]
            state = self._states.get(key)
            if state is not None and state.due == due and not state.running:
                return max(0.0, due - now)
            heapq.heappop(self._heap)
        return None

    def oldest_age_seconds(self, now: float) -> float:
        """For how long the key that waits longest has been due."""
        wait = self.next_due_seconds(now)
        return now - self._heap[0][0] if wait == 0.0 else 0.0

    def depth(self, now: float) -> int:
        """Keys that are due and nobody works on."""
        return sum(state.due is not None and state.due <= now and not state.running for state in self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def _ask(self, key: K, state: _State, due: float) -> None:
        if state.due is not None and state.due <= due:
            return
        state.due = due
        if not state.running:
            self._push(due, key)

    def _rest(self, key: K, state: _State, not_before: float) -> None:
        """End a run. What was asked for meanwhile waits no less than the key has to."""
        state.running, state.not_before = False, not_before
        if state.due is not None:
            state.due = max(state.due, not_before)
            self._push(state.due, key)

    def _budget(self, state: _State) -> float:
        """When the next run is paid for; in the past where the budget is not used up."""
        return max(0.0, state.spent_until - (self._burst - 1) * self._refill_seconds)

    def _push(self, due: float, key: K) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
