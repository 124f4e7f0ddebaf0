from __future__ import annotations

import pytest

from burnish.metrics import Estimate
from burnish.report.numbers import compare, duration


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


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7300, "2 h 01 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
