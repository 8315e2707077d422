"""How the goodput of the canary lanes compares with that of the others: a ratio with 95 % bounds.

1  Blocks. Minutes in which both arms worked are taken in order until each arm has BLOCK_REQUESTS requests: a block.
   Few requests make a minute's ratio wild and skewed; a block that is full does not. What is left over waits.

2  The ratio of one block, stratified by minute and workload s, as Mantel and Haenszel weigh rates
   (Greenland and Robins 1985, Biometrics 41), T = tokens within SLO, E = engine-seconds, N = requests, c = canary,
   k = control:

       R = sum_s T_c/L E_k / (E_c + E_k)  /  sum_s T_k/L E_c / (E_c + E_k)     L = (T_c + T_k) / (N_c + N_k)
       d = log R, at most log 4 either way

   Both arms are compared within the minute and the workload only: what drifts over the day, and whatever hits both
   arms at once, cancels. A stratum that one arm does not have weighs nothing. L, the mean tokens of a request there,
   makes every request count alike: what varies by chance is the request, and a workload with answers ten times as
   long must not drown the others. The clamp keeps one wild block, or one without any token within SLO, from deciding
   alone.

3  Blocks that follow each other are alike. The n blocks are worth

       n (1 - r) / (1 + r)   independent ones where their mean is concerned, and
       n (1 - r^2) / (1 + r^2)   where their spread is (Bayley and Hammersley 1946, Suppl. J. R. Stat. Soc. 8),

   r being the lag-one correlation, its bias in short series taken out (r + (1 + 4 r)/n, Kendall 1954, Biometrika 41),
   within 0 and MAX_CORRELATION. Twenty blocks tell it to within 0.2 only, and one that looks high by chance would
   throw most of the evidence away: it is drawn toward USUAL_CORRELATION as if USUAL_BLOCKS blocks had said so before.

4  The bounds. With mean m and standard deviation s of d, n and f independent blocks for mean and spread, each bound is
   one-sided:

       exp(m ± s t / sqrt(n)),   t = the quantile of Student's t with f - 1 degrees of freedom that leaves a_k above it

   The hold is looked at ten times, at the end of each holdSeconds, and a verdict at any of them ends it: ten looks at
   95 % each would err far more often than once in twenty. So look k spends only a_k = P(Z > C sqrt(10/k)), little at
   the early looks and most at the last (O'Brien and Fleming 1979, Biometrics 35; significance levels carried over to
   Student's t as in Jennison and Turnbull 2000, Group Sequential Methods, 3.8). C = 1.8012 makes the chance that an
   upper bound of the ten ever lies below the truth 5 %, and the same for the lower ones.

Normality of d and step 3 are approximations: `bench/canary.py` measures what they cost. The standard deviation is never
believed to be below MIN_DEVIATION: two equal blocks prove nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from streamserve.operator.canary import student
from streamserve.operator.canary.evidence import Cell, Minute

LOOKS: Final = 10
BOUNDARY: Final = 1.8012
BLOCK_REQUESTS: Final = 20
MAX_LOG_RATIO: Final = math.log(4.0)
MIN_DEVIATION: Final = 0.01
MAX_CORRELATION: Final = 0.8
USUAL_CORRELATION: Final = 0.2
USUAL_BLOCKS: Final = 20
MAX_WIDTH: Final = 10.0


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


def compare(minutes: Sequence[Minute], look: int) -> Comparison:
    """By the minutes that had ended at look `look` of LOOKS; before the first one, 0, nothing is bounded."""
    both = [minute for minute in minutes if _works(minute.canary.values()) and _works(minute.control.values())]
    logs = [log for block in _blocks(both) if (log := _log_ratio(block)) is not None]
    counts = Comparison(
        canary_requests=sum(_requests(minute.canary.values()) for minute in both),
        control_requests=sum(_requests(minute.control.values()) for minute in both),
        minutes=len(both),
    )
    return _bounds(logs, look, counts) if logs else counts


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
            seconds, tokens = canary.engine_seconds + control.engine_seconds, canary.tokens + control.tokens
            if seconds > 0 and tokens > 0:
                weight = (canary.requests + control.requests) / tokens / seconds
                above += canary.tokens * control.engine_seconds * weight
                below += control.tokens * canary.engine_seconds * weight
    if above == below == 0:
        return None
    if above == 0 or below == 0:
        return -MAX_LOG_RATIO if above == 0 else MAX_LOG_RATIO
    return max(-MAX_LOG_RATIO, min(MAX_LOG_RATIO, math.log(above) - math.log(below)))


def _bounds(logs: Sequence[float], look: int, counts: Comparison) -> Comparison:
    count = len(logs)
    mean = math.fsum(logs) / count
    squares = math.fsum((log - mean) ** 2 for log in logs)
    deviation = max(MIN_DEVIATION, math.sqrt(squares / (count - 1))) if count > 1 else math.inf
    alike = correlation(logs)
    independent = count * (1 - alike) / (1 + alike)
    freedom = count * (1 - alike**2) / (1 + alike**2) - 1
    width = half_width(independent, freedom, deviation, look)
    return Comparison(
        ratio=math.exp(mean),
        low=math.exp(mean - width) if width < MAX_WIDTH else 0.0,
        high=math.exp(mean + width) if width < MAX_WIDTH else math.inf,
        canary_requests=counts.canary_requests,
        control_requests=counts.control_requests,
        minutes=counts.minutes,
        blocks=count,
        independent_blocks=independent,
    )


def correlation(values: Sequence[float]) -> float:
    """Lag-one. Never negative: opposite neighbours are luck that must not narrow the interval."""
    count = len(values)
    mean = math.fsum(values) / count
    squares = math.fsum((value - mean) ** 2 for value in values)
    if count < 3 or squares == 0:
        return USUAL_CORRELATION
    found = math.fsum((one - mean) * (two - mean) for one, two in itertools.pairwise(values)) / squares
    unbiased = max(0.0, min(MAX_CORRELATION, found + (1 + 4 * found) / count))
    return (count * unbiased + USUAL_BLOCKS * USUAL_CORRELATION) / (count + USUAL_BLOCKS)


def half_width(independent: float, freedom: float, deviation: float, look: int) -> float:
    """How far a bound lies from the mean; infinite while there is too little to say."""
    if freedom < 1 or look < 1 or not math.isfinite(deviation):
        return math.inf
    return deviation * student.quantile(level(look), freedom) / math.sqrt(independent)


def level(look: int) -> float:
    """What look `look` may spend of the chance to err, on one side."""
    return NormalDist().cdf(-BOUNDARY * math.sqrt(LOOKS / min(look, LOOKS)))
