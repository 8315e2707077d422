"""`Off`: no drafts at all, whatever the bounds say."""

from __future__ import annotations

from streamserve.worker.specustream.estimator import Outcomes
from streamserve.worker.specustream.laws import Choice, Knowledge, Load


class Off:
    """Depth 0 always; keeps learning, so a later change of policy starts warm."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge

    def choose(self, load: Load) -> Choice:
        return Choice(0, "off")

    def observe_acceptance(self, outcomes: Outcomes) -> None:
        self._knowledge.acceptance.observe(outcomes)

    def observe_step(self, bucket: int, depth: int, seconds: float) -> None:
        self._knowledge.step_times.observe(bucket, depth, seconds)
