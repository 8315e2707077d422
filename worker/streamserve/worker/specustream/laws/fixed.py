"""`Fixed`: one depth for every step, moved into the bounds."""

from __future__ import annotations

from streamserve.worker.specustream.estimator import Outcomes
from streamserve.worker.specustream.laws import Choice, Knowledge, Load
from streamserve.worker.specustream.policy import DepthPolicy


class Fixed:
    """`fixed_depth` clamped to [min, max]; keeps learning, so a later change of policy starts warm."""

    def __init__(self, policy: DepthPolicy, knowledge: Knowledge) -> None:
        self._choice = Choice(policy.clamp(policy.fixed_depth), "fixed")
        self._knowledge = knowledge

    def choose(self, load: Load) -> Choice:
        return self._choice

    def observe_acceptance(self, outcomes: Outcomes) -> None:
        self._knowledge.acceptance.observe(outcomes)

    def observe_step(self, bucket: int, depth: int, seconds: float) -> None:
        self._knowledge.step_times.observe(bucket, depth, seconds)
