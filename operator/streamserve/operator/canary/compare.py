"""How the goodput of the canary lanes compares with that of the others: a ratio with a 95 % interval.

1  Blocks. Minutes in which both arms worked are taken in order until each arm has BLOCK_REQUESTS requests: a block.
   Few requests make a minute's ratio wild and skewed; a block that is full does not. What is left over waits.

2  The ratio of one block, stratified by minute and workload s, as Mantel and Haenszel weigh rates
   (Greenland and Robins 1985, Biometrics 41), T = tokens within SLO, E = engine-seconds, c = canary, k = control:

       R = sum_s T_c E_k / (E_c + E_k)  /  sum_s T_k E_c / (E_c + E_k)          d = log R, at most log 4 either way

   Both arms are compared within the minute and the workload only: what drifts over the day, and whatever hits both
   arms at once, cancels. A stratum that one arm does not have weighs nothing. The clamp keeps one wild block, or one
   without any token within SLO, from deciding alone.

3  The interval. It is looked at on every reconcile, so it must hold at all times at once: a confidence sequence for
   the mean of d with unknown variance, from the mixture of t-tests over a normal effect of g standard deviations'
   variance (Wang and Ramdas 2024, Anytime-valid t-tests, arXiv 2310.03722; the same Bayes factor in Lindon and others,
   arXiv 2210.08589). With n blocks of mean m and standard deviation s, it excludes mu once

       (1 + n g)^(-1/2) [(1 + t^2/v) / (1 + t^2/(v (1 + n g)))]^(n/2) >= 1/alpha,   t = (m - mu) sqrt(n) / s, v = n - 1

   which solved for mu gives m ± s sqrt(v (A - 1) / (n (1 - A/r))), r = 1 + n g, A = (r / alpha^2)^(1/n), and no
   bound at all while A >= r. The chance that it ever excludes the truth is at most alpha, however often one looks.

4  Blocks that follow each other are alike. n is replaced by the number of independent blocks that are worth as much,
   n (1 - rho) / (1 + rho), where rho is the lag-one correlation, its bias in short series taken out
   (rho + (1 + 4 rho)/n, Kendall 1954, Biometrika 41), within 0 and MAX_CORRELATION. That step and the normality of d
   are approximations: `bench/canary.py` measures what they cost.

The standard deviation is never believed to be below MIN_DEVIATION: two equal blocks prove nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from streamserve.operator.canary.evidence import Cell, Minute

ALPHA: Final = 0.05
EFFECT_VARIANCE: Final = 4.0
BLOCK_REQUESTS: Final = 20
MAX_LOG_RATIO: Final = math.log(4.0)
MIN_DEVIATION: Final = 0.01
MAX_CORRELATION: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Canary over control. `low` is 0 and `high` infinite while the evidence bounds nothing."""

    ratio: float = 1.0
    low: float = 0.0
    high: float = math.inf
    canary_requests: int = 0
    control_requests: int = 0
    minutes: int = 0
    blocks: int = 0
    independent_blocks: float = 0.0

    @property
    def requests(self) -> int:
        """Of the arm that has fewer."""
        return min(self.canary_requests, self.control_requests)

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.high)


def compare(minutes: Sequence[Minute]) -> Comparison:
    both = [minute for minute in minutes if _works(minute.canary.values()) and _works(minute.control.values())]
    logs = [log for block in _blocks(both) if (log := _log_ratio(block)) is not None]
    counts = Comparison(
        canary_requests=sum(_requests(minute.canary.values()) for minute in both),
        control_requests=sum(_requests(minute.control.values()) for minute in both),
        minutes=len(both),
    )
    return _interval(logs, counts) if logs else counts


def _works(cells: Iterable[Cell]) -> bool:
    return any(cell.engine_seconds > 0 for cell in cells)


def _requests(cells: Iterable[Cell]) -> int:
    return sum(cell.requests for cell in cells)


def _blocks(both: Iterable[Minute]) -> Iterable[list[Minute]]:
    block: list[Minute] = []
    canary = control = 0
    for minute in both:
        block.append(minute)
        canary += _requests(minute.canary.values())
        control += _requests(minute.control.values())
        if min(canary, control) >= BLOCK_REQUESTS:
            yield block
            block, canary, control = [], 0, 0


def _log_ratio(block: Iterable[Minute]) -> float | None:
    """None for a block that tells nothing: no workload that both arms had, or no token within SLO in either."""
    above = below = 0.0
    for minute in block:
        for workload in sorted(minute.canary.keys() & minute.control.keys()):
            canary, control = minute.canary[workload], minute.control[workload]
            both = canary.engine_seconds + control.engine_seconds
            if both > 0:
                above += canary.tokens * (control.engine_seconds / both)
                below += control.tokens * (canary.engine_seconds / both)
    if above == below == 0:
        return None
    if above == 0 or below == 0:
        return -MAX_LOG_RATIO if above == 0 else MAX_LOG_RATIO
    return max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, math.log(above) - math.log(below)))


def _interval(logs: Sequence[float], counts: Comparison) -> Comparison:
    count = len(logs)
    mean = math.fsum(logs) / count
    squares = math.fsum((log - mean) ** 2 for log in logs)
    deviation = max(MIN_DEVIATION, math.sqrt(squares / (count - 1))) if count > 1 else math.inf
    independent = count * (1 - (rho := correlation(logs))) / (1 + rho)
    width = half_width(independent, deviation)
    return Comparison(
        ratio=math.exp(mean),
        low=math.exp(mean - width) if math.isfinite(width) else 0.0,
        high=math.exp(mean + width) if math.isfinite(width) else math.inf,
        canary_requests=counts.canary_requests,
        control_requests=counts.control_requests,
        minutes=counts.minutes,
        blocks=count,
        independent_blocks=independent,
    )


def correlation(values: Sequence[float]) -> float:
    """Lag-one, its bias taken out, never negative: opposite neighbours are luck that must not narrow the interval."""
    count = len(values)
    if count < 3:
        return 0.0
    mean = math.fsum(values) / count
    squares = math.fsum((value - mean) ** 2 for value in values)
    if squares == 0:
        return 0.0
    found = math.fsum((one - mean) * (two - mean) for one, two in itertools.pairwise(values)) / squares
    return max(0.0, min(MAX_CORRELATION, found + (1 + 4 * found) / count))


def half_width(
    count: float, deviation: float, *, alpha: float = ALPHA, effect_variance: float = EFFECT_VARIANCE
) -> float:
    """Of the confidence sequence after `count` values; infinite while there are too few."""
    if count <= 1 or not math.isfinite(deviation):
        return math.inf
    r = 1 + count * effect_variance
    growth = (r / alpha**2) ** (1 / count)
    if growth >= r:
        return math.inf
    return deviation * math.sqrt((count - 1) * (growth - 1) / (count * (1 - growth / r)))
