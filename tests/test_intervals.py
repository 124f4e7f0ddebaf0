from __future__ import annotations

import math

import pytest

from burnish.intervals import normal, shown_interval, wilson


def test_wilson_by_hand():
    """p = 0.9, n = 10, z = 1.96: z²/n = 0.384146; centre = 1.092073 / 1.384146 = 0.788987.

    Half width = 1.959964 x sqrt(0.009 + 0.0096036) / 1.384146 = 0.193137; so [0.5958, 0.9821].
    """
    interval = wilson(0.9, 10)
    assert interval.low == pytest.approx(0.59585, abs=1e-5)
    assert interval.high == pytest.approx(0.98212, abs=1e-5)


def test_wilson_at_the_ends():
    """p = 1: high is 1 and low is n / (n + z²)."""
    interval = wilson(1.0, 80)
    assert interval.high == pytest.approx(1.0)
    assert interval.low == pytest.approx(80 / (80 + 1.959963984540054**2))
    assert wilson(0.0, 80).low == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(wilson(0.5, 0).low)


def test_normal():
    interval = normal(2.0, 0.5)
    assert (interval.low, interval.high) == (pytest.approx(1.02002, abs=1e-5), pytest.approx(2.97998, abs=1e-5))


def test_unknown_errors_and_nothing_measured():
    assert shown_interval(0.5, normal(0.5, math.nan)) == "0.500"
    assert shown_interval(math.nan, wilson(math.nan, 0)) == "nothing measured"
