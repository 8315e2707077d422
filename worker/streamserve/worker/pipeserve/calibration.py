"""How fast an engine is, as numbers that a simulator can replay.

    step_seconds(batch, depth)   linear in batch between recorded batches and in depth between recorded depths,
                                 beyond the outermost pair on the outermost slope (never negative)
    prefill_seconds(tokens)      linear between recorded chunk sizes, through (0, 0) below the smallest
    transfer_seconds(bytes)      linear between recorded sizes, level below the smallest (latency, not bandwidth)
    acceptance[i]                probability that draft i+1 holds, given that all before it did

Written by `streamserve-worker --record FILE` from a real engine, or built in: the built-in one is invented, round
and says so in `source`, so a figure that stands on it can not pass for a measurement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamserve.runtime.errors import SetupError
from streamserve.worker.pipeserve.engine import KvGeometry

FORMAT: Final = 1
BUILT_IN: Final = "built-in (invented round numbers, no engine was measured)"
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """One engine on one machine. Tables are never empty."""

    source: str
    engine_version: str
    vocabulary_size: int
    max_model_tokens: int
    max_running_requests: int
    kv: KvGeometry
    # (batch, depth, seconds), (tokens, seconds), (bytes, seconds)
    steps: tuple[tuple[int, int, float], ...]
    prefills: tuple[Point, ...]
    transfers: tuple[Point, ...]
    acceptance: tuple[float, ...]

    def step_seconds(self, batch: int, depth: int) -> float:
        """Time of one decode step of `batch` requests that verifies and drafts `depth` tokens each."""
        by_depth: dict[int, list[Point]] = {}
        for known_batch, known_depth, seconds in self.steps:
            by_depth.setdefault(known_depth, []).append((known_batch, seconds))
        curve = [(float(known), _line(points, batch)) for known, points in by_depth.items()]
        return _line(curve, depth)

    def prefill_seconds(self, tokens: int) -> float:
        """Time of computing `tokens` prompt tokens in one step."""
        return _line([(0.0, 0.0), *self.prefills], tokens) if tokens else 0.0

    def transfer_seconds(self, size_bytes: int) -> float:
        """Time from asking for a prompt's KV until it is here."""
        smallest = min(size for size, _ in self.transfers)
        return _line(self.transfers, max(float(size_bytes), smallest))

    def accepts(self, position: int) -> float:
        """Acceptance at a 0-based draft position; behind the last recorded one, that one's."""
        if not self.acceptance:
            return 0.0
        return self.acceptance[min(position, len(self.acceptance) - 1)]


def _line(points: Sequence[Point], x: float) -> float:
    """The piecewise linear curve through `points` at x, continued on its outermost slopes, never below zero."""
    known = sorted(points)
    if len(known) == 1:
        return known[0][1]
    at = next((i for i, (px, _) in enumerate(known) if px >= x), len(known) - 1)
    (x0, y0), (x1, y1) = known[max(at, 1) - 1], known[max(at, 1)]
    slope = (y1 - y0) / (x1 - x0) if x1 > x0 else 0.0
    return max(y0 + slope * (x - x0), 0.0)


def built_in() -> Calibration:
    """A small machine: 10 ms steps that grow a little with batch and depth, 8,000 prompt tokens a second."""
    return Calibration(
        source=BUILT_IN,
        engine_version="built-in",
        vocabulary_size=4_096,
        max_model_tokens=8_192,
        max_running_requests=64,
        kv=KvGeometry(
            block_tokens=16,
            bytes_per_block=32_768,
            total_blocks=8_192,
            target_layers=4,
            draft_layers=1,
            dtype="bfloat16",
        ),
        steps=tuple(
            (batch, depth, 0.008 + 0.0001 * batch + depth * (0.0006 + 0.00002 * batch))
            for batch in (1, 8, 64)
            for depth in (0, 6)
        ),
        prefills=((256.0, 0.032), (2_048.0, 0.256)),
        transfers=((32_768.0, 0.002), (16_777_216.0, 0.02)),
        acceptance=(0.75, 0.7, 0.65, 0.6, 0.55, 0.5),
    )


_Seconds = Annotated[float, Field(gt=0, lt=3_600, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, lt=2**48)]
_Depth = Annotated[int, Field(ge=0, le=16)]
_Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Kv(BaseModel):
    model_config = ConfigDict(extra="forbid")
    block_tokens: _Count
    bytes_per_block: _Count
    total_blocks: _Count
    target_layers: Annotated[int, Field(ge=0)]
    draft_layers: Annotated[int, Field(ge=0)]
    dtype: str


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: int = FORMAT
    source: str
    engine_version: str
    vocabulary_size: Annotated[int, Field(ge=2, lt=2**31)]
    max_model_tokens: Annotated[int, Field(ge=2, lt=2**31)]
    max_running_requests: Annotated[int, Field(ge=1, lt=2**20)]
    kv: _Kv
    step_seconds: Annotated[list[tuple[_Count, _Depth, _Seconds]], Field(min_length=1)]
    prefill_seconds: Annotated[list[tuple[_Count, _Seconds]], Field(min_length=1)]
    transfer_seconds: Annotated[list[tuple[_Count, _Seconds]], Field(min_length=1)]
    acceptance: Annotated[list[_Rate], Field(max_length=16)]


def load(path: Path) -> Calibration:
    """The calibration in `path`. Raises SetupError that names the field at fault."""
    try:
        file = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SetupError(f"cannot read calibration {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise SetupError(f"calibration {path}: {where}: {first['msg']}; record it again with --record") from None
    if file.format != FORMAT:
        raise SetupError(f"calibration {path} has format {file.format}, not {FORMAT}; record it again with --record")
    return Calibration(
        source=file.source,
        engine_version=file.engine_version,
        vocabulary_size=file.vocabulary_size,
        max_model_tokens=file.max_model_tokens,
        max_running_requests=file.max_running_requests,
        kv=KvGeometry(**file.kv.model_dump()),
        steps=tuple(file.step_seconds),
        prefills=tuple((float(tokens), seconds) for tokens, seconds in file.prefill_seconds),
        transfers=tuple((float(size), seconds) for size, seconds in file.transfer_seconds),
        acceptance=tuple(file.acceptance),
    )


def dump(calibration: Calibration) -> bytes:
    """The file that `load` reads back as `calibration`."""
    kv = calibration.kv
    document = {
        "format": FORMAT,
        "source": calibration.source,
        "engine_version": calibration.engine_version,
        "vocabulary_size": calibration.vocabulary_size,
        "max_model_tokens": calibration.max_model_tokens,
        "max_running_requests": calibration.max_running_requests,
        "kv": {name: getattr(kv, name) for name in _Kv.model_fields},
        "step_seconds": [list(row) for row in calibration.steps],
        "prefill_seconds": [[int(tokens), seconds] for tokens, seconds in calibration.prefills],
        "transfer_seconds": [[int(size), seconds] for size, seconds in calibration.transfers],
        "acceptance": list(calibration.acceptance),
    }
    return (json.dumps(document, indent=1) + "\n").encode()


def with_kv(
    calibration: Calibration, *, block_tokens: int, total_blocks: int, max_model_tokens: int, max_running: int
) -> Calibration:
    """The same engine with other limits; bytes per token stay what they were."""
    kv = calibration.kv
    return replace(
        calibration,
        max_model_tokens=max_model_tokens,
        max_running_requests=max_running,
        kv=replace(
            kv,
            block_tokens=block_tokens,
            total_blocks=total_blocks,
            bytes_per_block=max(1, kv.bytes_per_block * block_tokens // kv.block_tokens),
        ),
    )
