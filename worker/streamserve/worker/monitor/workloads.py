"""What each workload class does lately on this worker: tokens per decode step, and length of an answer.

Exponential averages over finished requests, weight 0.1. A decode step emits one token more than it accepts, so a
request of n tokens with a accepted drafts took n - a steps; one whose drafts nobody recorded teaches nothing. Classes
are those that requests name; the one unused for longest is forgotten when there are more than the signals have room
for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from streamserve.contract.signals import MAX_WORKLOADS, WorkloadAcceptance
from streamserve.worker.pipeserve.engine import Outcome

WEIGHT: Final = 0.1


def emitted_per_step(outcome: Outcome) -> float:
    """Mean tokens of a step of this request."""
    steps = outcome.completion_tokens - min(outcome.accepted_tokens, outcome.completion_tokens - 1)
    return outcome.completion_tokens / steps


class Workloads:
    def __init__(self, limit: int = MAX_WORKLOADS) -> None:
        self._limit = limit
        self._known: OrderedDict[str, WorkloadAcceptance] = OrderedDict()

    def observe(self, name: str, outcome: Outcome) -> None:
        if outcome.completion_tokens < 1 or not outcome.recorded:
            return
        emitted, output = emitted_per_step(outcome), float(outcome.completion_tokens)
        old = self._known.get(name)
        if old is not None:
            emitted = old.mean_emitted_tokens_per_step + WEIGHT * (emitted - old.mean_emitted_tokens_per_step)
            output = old.mean_output_tokens + WEIGHT * (output - old.mean_output_tokens)
        self._known[name] = WorkloadAcceptance(name, emitted, output)
        self._known.move_to_end(name)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    def latest(self) -> tuple[WorkloadAcceptance, ...]:
        """Most recent first, as the signals want them."""
        return tuple(reversed(self._known.values()))
