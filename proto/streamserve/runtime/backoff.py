"""Waiting before another try, and how many tries a process may spend at all."""

from __future__ import annotations

from random import Random


class Backoff:
    """Exponential with full jitter: uniform in (base/2, min(cap, base * 2^n)) seconds."""

    def __init__(self, base_seconds: float, cap_seconds: float, rng: Random) -> None:
        self._base = base_seconds
        self._cap = cap_seconds
        self._rng = rng
        self._failures = 0

    def next(self) -> float:
        ceiling = min(self._cap, self._base * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._rng.uniform(min(self._base, ceiling) / 2, ceiling)

    def reset(self) -> None:
        self._failures = 0


class RetryBudget:
    """At most `ratio` retries per success over the long run, `burst` at once (gRPC A6's retry throttling)."""

    def __init__(self, ratio: float = 0.1, burst: float = 10.0) -> None:
        self._ratio = ratio
        self._burst = burst
        self._tokens = burst

    def spend(self) -> bool:
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def earn(self) -> None:
        self._tokens = min(self._burst, self._tokens + self._ratio)
