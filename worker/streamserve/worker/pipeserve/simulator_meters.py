"""What the simulator's snapshot says, counted and averaged as a real engine's scheduler would.

Rates are exponential averages over steps (weight 0.1) and 0 until something was measured. The cost of a step is given
as base + per request x batch; the slope is the calibration's, the base is what was measured less the slope's share, so
that a slowed engine shows. Acceptance by position is over the last 128 to 256 drafts, so that a spoiled one shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from streamserve.worker.pipeserve.calibration import Calibration
from streamserve.worker.pipeserve.engine import EngineSnapshot
from streamserve.worker.pipeserve.simulated_scheduler import Emission, Step

_WEIGHT: Final = 0.1
_WINDOW_DRAFTS: Final = 256


class Meters:
    def __init__(self, calibration: Calibration, max_depth: int) -> None:
        self._calibration = calibration
        self.steps = 0
        self.depth = 0
        self.depth_histogram = [0] * (max_depth + 1)
        self.drafted = 0
        self.accepted = 0
        self._positions = [[0, 0] for _ in range(max_depth)]
        self._emitted_per_step = 0.0
        self._base_seconds = 0.0
        self._per_request_seconds = 0.0
        self._prefill_tokens_per_second = 0.0
        self._transfer_bytes_per_second = 0.0
        self.transfers = 0
        self.transfers_failed = 0
        self.transferred_bytes = 0

    def stepped(self, step: Step, seconds: float, emissions: Sequence[Emission]) -> None:
        self.steps += 1
        if step.prefill_tokens and seconds > 0:
            rate = step.prefill_tokens / seconds
            self._prefill_tokens_per_second = _average(self._prefill_tokens_per_second, rate)
        if not step.decoding:
            return
        self.depth = step.depth
        self.depth_histogram[step.depth] += 1
        for emission in emissions:
            self._count(emission.drafted, emission.accepted)
        decoded = [e for e in emissions if e.first_index or e.sequence.remote]
        if decoded:
            mean = sum(e.tokens for e in decoded) / len(decoded)
            self._emitted_per_step = _average(self._emitted_per_step, mean)
        if not step.prefill_tokens:
            one, many = (self._calibration.step_seconds(batch, step.depth) for batch in (1, 32))
            expected = self._calibration.step_seconds(step.decoding, step.depth)
            slowed = seconds / expected if expected > 0 else 1.0
            slope = slowed * (many - one) / 31
            self._per_request_seconds = _average(self._per_request_seconds, slope)
            self._base_seconds = _average(self._base_seconds, max(seconds - slope * step.decoding, 0.0))

    def _count(self, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.accepted += accepted
        for position in range(min(drafted, len(self._positions))):
            counts = self._positions[position]
            counts[0] += 1
            counts[1] += position < accepted
            if counts[0] > _WINDOW_DRAFTS:
                counts[0] //= 2
                counts[1] //= 2

    def transferred(self, size_bytes: int, seconds: float) -> None:
        self.transfers += 1
        self.transferred_bytes += size_bytes
        if seconds > 0:
            self._transfer_bytes_per_second = _average(self._transfer_bytes_per_second, size_bytes / seconds)

    def snapshot(
        self, *, alive: bool, death: str, running: int, waiting: int, waiting_tokens: int, blocks_used: int
    ) -> EngineSnapshot:
        return EngineSnapshot(
            alive=alive,
            death=death,
            running_requests=running,
            waiting_requests=waiting,
            waiting_prompt_tokens=waiting_tokens,
            kv_blocks_total=self._calibration.kv.total_blocks,
            kv_blocks_used=blocks_used,
            depth=self.depth,
            depth_histogram=tuple(self.depth_histogram),
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            positions=tuple((drafted, accepted) for drafted, accepted in self._positions),
            mean_emitted_tokens_per_step=self._emitted_per_step,
            step_base_seconds=self._base_seconds,
            step_per_request_seconds=self._per_request_seconds,
            prefill_tokens_per_second=self._prefill_tokens_per_second,
            transfer_bytes_per_second=self._transfer_bytes_per_second,
            kv_bytes_received=self.transferred_bytes,
            kv_transfers_received=self.transfers,
            kv_transfers_failed=self.transfers_failed,
            kv_bytes_expected=self.transferred_bytes,
        )


def _average(old: float, new: float) -> float:
    return new if old == 0.0 else old + _WEIGHT * (new - old)
