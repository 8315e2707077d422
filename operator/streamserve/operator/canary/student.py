"""Quantiles of Student's t without a library of statistics: the operator's image holds none.

    P(T > t) = I_x(v/2, 1/2) / 2,   x = v / (v + t^2),   t >= 0

I is the regularised incomplete beta function, by its continued fraction (Press and others, Numerical Recipes, 6.4);
the quantile is found by bisection. Degrees of freedom need not be whole.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

_TINY: Final = 1e-300
_PRECISION: Final = 1e-14
_MAX_TERMS: Final = 1_000
_MAX_QUANTILE: Final = 1e9


@lru_cache(maxsize=256)
def quantile(tail: float, freedom: float) -> float:
    """t with P(T > t) = `tail`, for 0 < tail <= 1/2 and freedom > 0; infinite past what can matter."""
    low, high = 0.0, 1.0
    while upper_tail(high, freedom) > tail:
        low, high = high, 2 * high
        if high > _MAX_QUANTILE:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if upper_tail(middle, freedom) > tail:
            low = middle
        else:
            high = middle
    return high


def upper_tail(t: float, freedom: float) -> float:
    """P(T > t) for t >= 0."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The fraction converges fast on this side; the other is its mirror image.
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Lentz's method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
