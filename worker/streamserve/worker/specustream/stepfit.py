"""Step time as a line over the batch: t(n) = tau0 + tau1 · n, for the router's prediction of one more request.

Least squares over recent decode steps, older ones fading by `DECAY` a step. While the batch does not vary the two
terms cannot be told apart: then the slope keeps its last value and the base takes up the rest.
"""

from __future__ import annotations

DECAY = 0.98
CLIP = 5.0


class StepFit:
    """Exponentially fading least squares in two unknowns, neither of them negative."""

    __slots__ = ("_n", "_nn", "_nt", "_slope", "_t", "_w")

    def __init__(self) -> None:
        self._w = self._n = self._nn = self._t = self._nt = self._slope = 0.0

    def observe(self, requests: int, seconds: float) -> None:
        """A decode step over `requests` took `seconds`; one stall may count for five usual steps at most."""
        if not 0 < seconds < float("inf"):
            return
        if self._w > 3:
            seconds = min(seconds, CLIP * self._t / self._w)
        self._w = DECAY * self._w + 1
        self._n = DECAY * self._n + requests
        self._nn = DECAY * self._nn + requests * requests
        self._t = DECAY * self._t + seconds
        self._nt = DECAY * self._nt + requests * seconds

    def line(self) -> tuple[float, float]:
        """(tau0, tau1) in seconds; zeros before the first step."""
        if not self._w:
            return 0.0, 0.0
        mean_n, mean_t = self._n / self._w, self._t / self._w
        variance = self._nn / self._w - mean_n * mean_n
        if variance > 0.05:
            slope = (self._nt / self._w - mean_n * mean_t) / variance
            self._slope = min(max(slope, 0.0), mean_t / mean_n)
        slope = min(self._slope, mean_t / mean_n)
        return mean_t - slope * mean_n, slope
