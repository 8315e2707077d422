"""The engine's figures for the outside: the scheduler's record, over a recent window where a rate is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from streamserve.worker.pipeserve.engine import EngineSnapshot
from streamserve.worker.specustream.record import Figures

WINDOW_SECONDS: Final = 10.0
_SAMPLE_SECONDS: Final = 0.5
_DECAY: Final = 0.9
_FAILURES: Final = ("num_failed_transfers", "num_failed_handshakes", "num_failed_notifications")


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    figures: Figures


class Meters:
    """Sums of transfers by vLLM's connector, and a window over the scheduler's counters."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._bytes = self._transfers = self._failed = 0
        self._recent_bytes = self._recent_seconds = 0.0
        self._mean_emitted = 0.0

    def observe_transfers(self, counts: Mapping[str, list[float]]) -> None:
        """vLLM's KV connector counters of one step: lists with one entry per transfer."""
        sizes = counts.get("bytes_transferred", ())
        durations = counts.get("transfer_duration", ())
        self._bytes += int(sum(sizes))
        self._transfers += len(sizes)
        self._failed += int(sum(sum(counts.get(name, ())) for name in _FAILURES))
        for size, seconds in zip(sizes, durations, strict=False):
            self._recent_bytes = _DECAY * self._recent_bytes + size
            self._recent_seconds = _DECAY * self._recent_seconds + seconds

    def snapshot(
        self, figures: Figures, *, now: float, death: str, bytes_per_block: int, max_depth: int
    ) -> EngineSnapshot:
        oldest = self._oldest(figures, now)
        request_steps = figures.decode_request_steps - oldest.decode_request_steps
        if request_steps > 0:
            self._mean_emitted = (figures.emitted_tokens - oldest.emitted_tokens) / request_steps
        rate = self._recent_bytes / self._recent_seconds if self._recent_seconds else 0.0
        return EngineSnapshot(
            alive=not death,
            running_requests=figures.running_requests,
            waiting_requests=figures.waiting_requests,
            waiting_prompt_tokens=max(figures.waiting_prompt_tokens, 0),
            kv_blocks_total=figures.total_blocks,
            kv_blocks_used=figures.total_blocks - figures.free_blocks,
            depth=figures.depth,
            depth_histogram=figures.depth_steps,
            drafted_tokens=figures.drafted_tokens,
            accepted_tokens=figures.accepted_tokens,
            positions=_positions(figures, oldest, max_depth),
            mean_emitted_tokens_per_step=self._mean_emitted,
            step_base_seconds=figures.step_base_seconds,
            step_per_request_seconds=figures.step_per_request_seconds,
            prefill_tokens_per_second=figures.prefill_tokens_per_second,
            transfer_bytes_per_second=rate,
            kv_bytes_received=self._bytes,
            kv_transfers_received=self._transfers,
            kv_transfers_failed=self._failed,
            kv_bytes_expected=figures.blocks_received * bytes_per_block,
            speculation_fallback=figures.fallback,
            death=death,
        )

    def _oldest(self, figures: Figures, now: float) -> Figures:
        """The figures at the start of the window."""
        if not self._samples:
            self._samples.append(_Sample(now - WINDOW_SECONDS, Figures()))
        if now - self._samples[-1].at >= _SAMPLE_SECONDS:
            self._samples.append(_Sample(now, figures))
        while len(self._samples) > 1 and self._samples[1].at <= now - WINDOW_SECONDS:
            self._samples.popleft()
        return self._samples[0].figures


def _positions(figures: Figures, oldest: Figures, max_depth: int) -> tuple[tuple[int, int], ...]:
    """(drafted, accepted) per position within the window, or since the start while the window is empty."""
    now = list(zip(figures.drafted_by_position, figures.accepted_by_position, strict=True))[:max_depth]
    then = list(zip(oldest.drafted_by_position, oldest.accepted_by_position, strict=True))[:max_depth]
    recent = tuple((a[0] - b[0], a[1] - b[1]) for a, b in zip(now, then, strict=True))
    return recent if any(drafted for drafted, _ in recent) else tuple(now)
