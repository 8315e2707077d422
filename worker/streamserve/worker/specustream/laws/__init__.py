"""The policies, one module each, behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from streamserve.worker.specustream.estimator import AcceptancePosterior, Outcomes
from streamserve.worker.specustream.steptimes import StepTimes


@dataclass(frozen=True, slots=True)
class Load:
    """What a law may know about the step that is being scheduled. Only the past, so speculation stays lossless."""

    decoding: int
    """Requests that sample a token in this step."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The depth to draft now (verified in the next step), and why."""

    depth: int
    reason: str


class Law(Protocol):
    """Decides a depth each step and learns from what came of it."""

    def choose(self, load: Load) -> Choice:
        """The depth for this step's drafts; called once per scheduled step."""

    def observe_acceptance(self, outcomes: Outcomes) -> None:
        """The verified drafts of one step, all at once."""

    def observe_step(self, bucket: int, depth: int, seconds: float) -> None:
        """One clean decode step (no prefill in it, no idling before it, drafted and verified at `depth`)."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What was learned about this engine; outlives a change of policy, which must not unlearn it."""

    acceptance: AcceptancePosterior
    step_times: StepTimes

    @staticmethod
    def empty() -> Knowledge:
        return Knowledge(AcceptancePosterior(), StepTimes())
