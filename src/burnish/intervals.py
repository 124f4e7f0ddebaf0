"""Confidence intervals of means and shares, as pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


def wilson(mean: float, weight: float) -> Interval:
    """Wilson's 95 % interval of a share; it stays within [0, 1] and does not collapse at its ends.

    centre = (p + z²/2n) / (1 + z²/n),   half width = z sqrt(p (1 - p) / n + z²/4n²) / (1 + z²/n)

    Args:
        mean: the share p, in [0, 1].
        weight: the number n it is a share of; 0 gives NaN.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    >>> interval = wilson(0.5, 100)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.4038, 0.5962)
    """
    if weight <= 0 or math.isnan(mean):
        return Interval(math.nan, math.nan)
    square = Z_95 * Z_95 / weight
    centre = (mean + square / 2) / (1 + square)
    half = Z_95 * math.sqrt(max(mean * (1 - mean), 0.0) / weight + square / (4 * weight)) / (1 + square)
    return Interval(centre - half, centre + half)


def normal(mean: float, standard_error: float) -> Interval:
    """mean ± 1.96 standard errors."""
    return Interval(mean - Z_95 * standard_error, mean + Z_95 * standard_error)


def shown_interval(mean: float, interval: Interval) -> str:
    """A mean with its interval; without one where it is not known.

    >>> shown_interval(0.5, Interval(0.4038, 0.5962))
    '0.500 [0.404, 0.596]'
    """
    if math.isnan(mean):
        return "nothing measured"
    if math.isnan(interval.low):
        return f"{mean:.3f}"
    return f"{mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
