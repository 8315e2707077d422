"""Do two samples of token ids come from one distribution? Exact per token, corrected for how many are looked at.

Cells: every token with at least MIN_SHARE of the reference, and one for all others. Each cell is a 2 × 2 table
(reference or candidate, this cell or not) whose exact two-sided probability is taken from the hypergeometric
distribution. The verdict is "different" when the smallest of them, times the number of cells of all positions
(Bonferroni), is below FALSE_ALARM: two equal distributions are told apart in at most that share of runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import hypergeom

MIN_SHARE = 0.01
FALSE_ALARM = 1e-3
OTHERS = -1


@dataclass(frozen=True)
class Verdict:
    """The most striking cell, and its probability after correction (above 1 means: nothing at all)."""

    corrected: float
    position: int
    token: int
    reference_share: float
    candidate_share: float
    cells: int

    @property
    def different(self) -> bool:
        return self.corrected < FALSE_ALARM


def compare(reference: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]]) -> Verdict:
    """Samples of equal length, one token for each position, position by position."""
    rows: list[tuple[float, int, int, float, float]] = []
    for position in range(len(reference[0])):
        expected = Counter(sample[position] for sample in reference)
        got = Counter(sample[position] for sample in candidate)
        tokens = {token for token, count in expected.items() if count >= MIN_SHARE * len(reference)}
        for token in (*sorted(tokens), OTHERS):
            here = _count(expected, token, tokens), _count(got, token, tokens)
            probability = _two_sided(*here, len(reference), len(candidate))
            rows.append((probability, position, token, here[0] / len(reference), here[1] / len(candidate)))
    probability, position, token, reference_share, candidate_share = min(rows)
    return Verdict(probability * len(rows), position, token, reference_share, candidate_share, len(rows))


def _count(counts: Counter[int], token: int, named: set[int]) -> int:
    if token != OTHERS:
        return counts[token]
    return sum(count for other, count in counts.items() if other not in named)


def _two_sided(expected: int, got: int, reference: int, candidate: int) -> float:
    table = hypergeom(reference + candidate, expected + got, candidate)
    return min(1.0, 2 * min(float(table.cdf(got)), float(table.sf(got - 1))))
