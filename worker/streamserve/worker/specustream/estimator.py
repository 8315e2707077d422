"""How likely is a draft at position i to be accepted, given that all before it were?

    c_i  = accepted_i / (accepted_i + rejected_i)                   both counts begin with a prior: p0·n0, (1-p0)·n0
    S_k  = c_1 · … · c_k                                            a draft of k survives whole
    E(k) = 1 + S_1 + … + S_k                                        expected tokens emitted by one step

A rejection ends the draft, so positions behind it were never tried and count for nothing. Counts are halved in weight
continuously: once a position has seen `memory` outcomes both its counts are scaled back to that many, so the newest
`memory` outcomes rule and the prior is forgotten as the rest. The outcomes of one step are of one age: they are added
up before anything is scaled, or those that happen to come last would rule a large batch. Pooled over all requests of an
engine: conditional rates multiply to the pooled survival exactly, so requests of different difficulty need no treatment
of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamserve.worker.specustream.policy import MAX_DEPTH

Outcomes = Mapping[tuple[int, int], int]
"""(tokens drafted and verified, how many of the first of them held) to the number of requests that it went so for."""


class AcceptancePosterior:
    """Per-position acceptance of one engine's drafter on its current traffic."""

    __slots__ = ("_accepted", "_memory", "_rejected")

    def __init__(
        self,
        depth: int = MAX_DEPTH,
        *,
        prior_rate: float = 0.7,
        prior_weight: float = 8.0,
        memory: float = 200.0,
    ) -> None:
        self._accepted = [prior_rate * prior_weight] * depth
        self._rejected = [(1 - prior_rate) * prior_weight] * depth
        self._memory = memory

    def observe(self, outcomes: Outcomes) -> None:
        """What came of one step's drafts."""
        for (drafted, accepted), requests in outcomes.items():
            drafted = min(drafted, len(self._accepted))
            for position in range(min(accepted + 1, drafted)):
                if position < accepted:
                    self._accepted[position] += requests
                else:
                    self._rejected[position] += requests
        for position in range(len(self._accepted)):
            seen = self._accepted[position] + self._rejected[position]
            if seen > self._memory:
                scale = self._memory / seen
                self._accepted[position] *= scale
                self._rejected[position] *= scale

    def rate(self, position: int) -> float:
        """Posterior mean of acceptance at `position` (0-based), given that all before it were accepted."""
        accepted, rejected = self._accepted[position], self._rejected[position]
        return accepted / (accepted + rejected)

    def expected_emitted(self, deepest: int) -> list[float]:
        """E(k), tokens per request and step, for k = 0..deepest."""
        expected, survival = [1.0], 1.0
        for position in range(deepest):
            survival *= self.rate(position)
            expected.append(expected[-1] + survival)
        return expected
