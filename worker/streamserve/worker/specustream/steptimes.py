"""How long does a decode step take at load bucket b with depth k?

A table of running means, one per (bucket, depth), filled from clean steps only (the caller drops those with
prefill in them, after idling, or between two depths). A sample weighs max(0.1, 1/(count+1)): an average at
first, then an exponential one. A sample is clipped at three times the mean, so one stall cannot move the table. The
very first step at a (bucket, depth) counts for nothing: a shape seen for the first time builds its kernels. A depth
that was not run for `STALE` steps keeps its mean as if from two samples: the machine may be another by now, and a few
new samples have to be able to say so.

Between measured depths the curve is linear, beyond them it follows the last slope, and it is made non-decreasing
(verifying more never costs less; a dip is noise). Not a regression over load and depth: under one steady load a
regression cannot separate the terms, a table with anchors can (see docs/decisions).
"""

from __future__ import annotations

from dataclasses import dataclass

CLIP = 3.0
STALE = 60


def bucket_of(decoding: float) -> int:
    """Load bucket of `decoding` requests in a step: floor(log2), so 1, 2-3, 4-7, 8-15, …"""
    return max(int(decoding), 1).bit_length() - 1


@dataclass(slots=True)
class Cell:
    seconds: float = 0.0
    squares: float = 0.0
    """Running mean of squared deviation, for the coefficient of variation."""
    count: int = 0
    last_at: int = 0
    """Observation number of the newest sample; the smaller, the longer ago."""


class StepTimes:
    """Measured step times of one engine."""

    __slots__ = ("_cells", "_clock", "_warm")

    def __init__(self) -> None:
        self._warm: set[tuple[int, int]] = set()
        self._cells: dict[int, dict[int, Cell]] = {}
        self._clock = 0

    def observe(self, bucket: int, depth: int, seconds: float) -> None:
        """One clean decode step of `seconds`; values that are not positive and finite are ignored."""
        if not 0 < seconds < float("inf"):
            return
        if (bucket, depth) not in self._warm:
            self._warm.add((bucket, depth))
            return
        self._clock += 1
        cell = self._cells.setdefault(bucket, {}).setdefault(depth, Cell())
        if self._clock - cell.last_at > STALE:
            cell.count = min(cell.count, 2)
        if cell.count:
            seconds = min(seconds, CLIP * cell.seconds)
        weight = max(0.1, 1 / (cell.count + 1))
        deviation = seconds - cell.seconds
        cell.seconds += weight * deviation
        if cell.count:
            cell.squares += weight * (deviation * deviation - cell.squares)
        cell.count += 1
        cell.last_at = self._clock

    def count(self, bucket: int, depth: int) -> int:
        cell = self._cells.get(bucket, {}).get(depth)
        return cell.count if cell else 0

    def last_at(self, bucket: int, depth: int) -> int:
        cell = self._cells.get(bucket, {}).get(depth)
        return cell.last_at if cell else 0

    def variation(self, bucket: int) -> float:
        """Coefficient of variation of the bucket's best measured depth, a fresh one if any; 0 while unknown."""
        cells = self._cells.get(bucket)
        if not cells:
            return 0.0
        cell = max(cells.values(), key=lambda c: (self._weight(c), c.count))
        return float(cell.squares**0.5 / cell.seconds) if cell.count > 2 and cell.seconds else 0.0

    def curve(self, bucket: int, deepest: int) -> list[float]:
        """Seconds of a step at depth 0..deepest, non-decreasing; empty when the bucket was never measured."""
        cells = self._cells.get(bucket)
        if not cells:
            return []
        known = sorted((depth, cell.seconds) for depth, cell in cells.items())
        # A measured depth speaks for itself, also where it was faster than a shallower one: pooling settles that.
        raw = [
            cell.seconds if (cell := cells.get(depth)) is not None else _interpolate(known, depth)
            for depth in range(deepest + 1)
        ]
        return _non_decreasing(raw, [self._weight(cells.get(depth)) for depth in range(deepest + 1)])

    def _weight(self, cell: Cell | None) -> int:
        """How much a measured mean has to say against its neighbours."""
        if cell is None:
            return 0
        return min(cell.count, 2 if self._clock - cell.last_at > STALE else 10)


def _interpolate(known: list[tuple[int, float]], depth: int) -> float:
    if len(known) == 1:
        return known[0][1]
    if depth <= known[0][0]:
        low, high = known[0], known[1]
    elif depth >= known[-1][0]:
        low, high = known[-2], known[-1]
    else:
        at = next(i for i, (measured, _) in enumerate(known) if measured >= depth)
        low, high = known[at - 1], known[at]
    slope = max((high[1] - low[1]) / (high[0] - low[0]), 0.0)
    return max(low[1] + slope * (depth - low[0]), 0.25 * min(low[1], high[1]))


def _non_decreasing(values: list[float], counts: list[int]) -> list[float]:
    """Isotonic regression (pool adjacent violators); a measured value weighs its samples, a guess weighs a little."""
    blocks: list[tuple[float, float, int]] = []
    for value, count in zip(values, counts, strict=True):
        block = (value, float(count) or 0.1, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, weight, length = blocks.pop()
            total = weight + block[1]
            block = ((mean * weight + block[0] * block[1]) / total, total, length + block[2])
        blocks.append(block)
    return [mean for mean, _, length in blocks for _ in range(length)]
