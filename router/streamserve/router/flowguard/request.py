"""What a decision needs to know of a request: sizes, class, and who has failed it already."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """One attempt of one request.

    `prompt_tokens` includes the tokens already sent when a stream is replayed. For a prompt given as text it is the
    caller's estimate (characters / 4), and `prompt_estimated` says so: an estimate is never a reason to refuse for
    length. `expected_output_tokens` None means what the workers report of this workload, else a prior.
    `excluded_workers` are those that failed earlier attempts.
    """

    prompt_tokens: int
    max_tokens: int
    workload: str = "default"
    cached_prompt_tokens: int = 0
    prompt_estimated: bool = False
    expected_output_tokens: float | None = None
    excluded_workers: frozenset[str] = frozenset()

    @property
    def uncached_prompt_tokens(self) -> int:
        return max(1, self.prompt_tokens - self.cached_prompt_tokens)

    @property
    def prefill_only(self) -> bool:
        """One token: the prefill worker answers, no decode worker is needed."""
        return self.max_tokens == 1
