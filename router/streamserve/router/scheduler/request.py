"""One checked request as the scheduler carries it, whichever front it came through."""

from __future__ import annotations

from dataclasses import dataclass

from streamserve.contract.sampling import Sampling
from streamserve.v1 import common_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """`prompt_tokens` is exact for token ids and an estimate (bytes / 4) for text; `max_tokens` has its default filled
    in. Times are of one monotonic clock."""

    id: str
    prompt: common_pb2.Prompt
    prompt_tokens: int
    sampling: Sampling
    sampling_message: common_pb2.SamplingParams
    max_tokens: int
    arrival_seconds: float
    deadline_seconds: float
    workload: str = "default"
    priority: int = 0
    prompt_estimated: bool = False

    @property
    def exact_output(self) -> bool:
        """Nothing but max_tokens ends it."""
        return self.sampling.ignore_eos and not self.sampling.stop

    @property
    def least_tokens(self) -> int:
        """Tokens that will certainly be made: a lower bound for the time that the request takes."""
        return self.max_tokens if self.exact_output else self.sampling.min_tokens
