from __future__ import annotations

import math

import pytest

from burnish.metrics import Estimate
from burnish.report.numbers import compare, duration, normal, shown_interval, wilson


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


def test_compare_picks_the_three_measures_of_every_data_set():
    after = {
        "eval_a_loss": Estimate(0.6, 80.0, 0.01),
        "eval_a_rewards/accuracies": Estimate(0.9, 10.0, 0.1),
        "eval_a_rewards/margins": Estimate(2.0, 80.0, 0.5),
        "eval_a_loss/sigmoid": Estimate(0.6, 80.0, 0.01),
        "eval_a_entropy": Estimate(1.0, 80.0, 0.01),
    }
    rows = compare({}, after)
    assert [row.label for row in rows] == list(after)[:3]
    assert {row.before for row in rows} == {"not measured"}
    assert [row.after for row in rows] == ["0.600 [0.580, 0.620]", "0.900 [0.596, 0.982]", "2.000 [1.020, 2.980]"]


def test_unknown_errors_and_nothing_measured():
    assert shown_interval(0.5, normal(0.5, math.nan)) == "0.500"
    assert shown_interval(math.nan, wilson(math.nan, 0)) == "nothing measured"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7300, "2 h 01 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
