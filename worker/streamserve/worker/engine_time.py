"""What each request costs the engine, in seconds: the time in which it has requests, shared equally among them.

    cost = ∫ dt / n(t)   from the moment the engine gets the request until it has let go of it, n = requests it has then

So the costs of all requests add up to the time in which the engine had any; a step that serves b of them costs each
1/b of it, whatever the engine is. One running integral serves them all: a request's cost is its rise in between.

What ends whole is told in its last message. What does not (cancelled, out of time, gone elsewhere) has cost the engine
as much: its share is told with the next request of its workload that ends whole, so that work which nobody got is not
free. Past MAX_WORKLOADS names the shares of all others wait together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from streamserve.contract.signals import MAX_WORKLOADS

OTHERS: Final = ""


class Share:
    """One request's part in the engine's time. Ends once, whole or not."""

    __slots__ = ("_mark", "_owner", "_workload", "seconds")

    def __init__(self, owner: EngineTime, workload: str, mark: float) -> None:
        self._owner = owner
        self._workload = workload
        self._mark: float | None = mark
        self.seconds = 0.0

    def told(self) -> float:
        """The request ended whole: what it cost, and what those cost that did not."""
        self._end()
        told, self.seconds = self.seconds + self._owner.take_untold(self._workload), 0.0
        return told

    def end(self) -> None:
        """The engine has let go of it. Idempotent."""
        self._end()

    def close(self) -> None:
        """Nothing more will be said of it: what was not told is told by another. Idempotent."""
        self._end()
        seconds, self.seconds = self.seconds, 0.0
        self._owner.leave_untold(self._workload, seconds)

    def _end(self) -> None:
        if self._mark is not None:
            self.seconds, self._mark = self._owner.left(self._mark), None


class EngineTime:
    """Of one worker. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._requests = 0
        self._integral = 0.0
        self._at = clock()
        self._untold: dict[str, float] = {}

    def enter(self, workload: str) -> Share:
        """The engine gets a request."""
        self._advance()
        self._requests += 1
        return Share(self, workload, self._integral)

    def left(self, mark: float) -> float:
        """For shares: one of the requests is gone that came at `mark`. Returns what it cost."""
        self._advance()
        self._requests -= 1
        return self._integral - mark

    def leave_untold(self, workload: str, seconds: float) -> None:
        if seconds > 0:
            known = workload in self._untold or len(self._untold) < MAX_WORKLOADS
            name = workload if known else OTHERS
            self._untold[name] = self._untold.get(name, 0.0) + seconds

    def take_untold(self, workload: str) -> float:
        return self._untold.pop(workload, 0.0) + self._untold.pop(OTHERS, 0.0)

    def _advance(self) -> None:
        now = self._clock()
        if self._requests:
            self._integral += max(0.0, now - self._at) / self._requests
        self._at = now
