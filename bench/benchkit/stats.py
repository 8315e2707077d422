"""Medians, spread, and intervals of paired ratios.

    ratio of a pair    r = ours / theirs, of the same repeat and the same request
    point              median of all r
    interval           2.5 % and 97.5 % of that median over RESAMPLES two-level bootstrap draws: repeats with
                       replacement, then pairs within each drawn repeat with replacement

Two levels, because the pairs of one repeat share one start of the engines: drawing pairs alone would treat a start
that was lucky as many independent samples and give an interval that is too narrow.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final

RESAMPLES: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Median and quartiles of `count` samples."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """Interquartile range."""
        return self.high - self.low


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A median of paired ratios with its 95 % interval; `pairs` over `repeats` blocks."""

    point: float
    low: float
    high: float
    pairs: int
    repeats: int


def quantile(values: Sequence[float], share: float) -> float:
    """The `share` quantile, linear between neighbours. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values to take a quantile of")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarize(values: Sequence[float]) -> Summary:
    return Summary(
        median=quantile(values, 0.5), low=quantile(values, 0.25), high=quantile(values, 0.75), count=len(values)
    )


def paired(
    ours: Mapping[int, Mapping[Hashable, float]], theirs: Mapping[int, Mapping[Hashable, float]]
) -> dict[int, list[float]]:
    """Ratios by repeat, of the requests that both have. A request that only one side has is no pair."""
    ratios: dict[int, list[float]] = {}
    for repeat in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[repeat], theirs[repeat]
        found = [mine[key] / other[key] for key in mine if other.get(key, 0.0) > 0.0]
        if found:
            ratios[repeat] = found
    return ratios


def ratio_interval(ratios: Mapping[int, Sequence[float]], *, seed: int, resamples: int = RESAMPLES) -> Ratio:
    """Median ratio and its 95 % interval. Raises ValueError when there is no pair."""
    blocks = [list(block) for block in ratios.values() if block]
    if not blocks:
        raise ValueError("no pair of samples: the two arms have no request in common")
    rng = Random(seed)
    draws = []
    for _ in range(resamples):
        sample: list[float] = []
        for block in rng.choices(blocks, k=len(blocks)):
            sample += rng.choices(block, k=len(block))
        draws.append(median(sample))
    return Ratio(
        point=median([value for block in blocks for value in block]),
        low=quantile(draws, 0.025),
        high=quantile(draws, 0.975),
        pairs=sum(map(len, blocks)),
        repeats=len(blocks),
    )
