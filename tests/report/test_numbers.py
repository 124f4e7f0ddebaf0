from __future__ import annotations

import pytest

from burnish.metrics import Estimate
from burnish.report.numbers import compare, duration, held_out_sizes, reliability_bins


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


def test_accuracy_of_pairs_and_of_groups():
    """A reward model's has Wilson's interval, since its pairs are right or wrong; a policy's that of its groups."""
    accuracy = {"eval_accuracy": Estimate(1.0, 80.0, 0.0)}
    of_pairs = compare({}, {**accuracy, "eval_margin": Estimate(2.0, 80.0, 0.5), "eval_max_reward": Estimate(9, 1, 0)})
    assert [(row.label, row.after) for row in of_pairs] == [
        ("eval_accuracy", "1.000 [0.954, 1.000]"),
        ("eval_margin", "2.000 [1.020, 2.980]"),
    ]
    assert held_out_sizes(of_pairs) == "eval 80 pairs"
    of_groups = compare({}, accuracy)
    assert [row.after for row in of_groups] == ["1.000 [1.000, 1.000]"]
    assert held_out_sizes(of_groups) == "eval 80 prompts"


def test_reliability_of_each_data_set():
    shares = {"eval_a_reliability/90-100": 1.0, "eval_a_reliability/50-60": 0.5, "eval_b_reliability/50-60": 0.25}
    found = reliability_bins({name: Estimate(share, 4.0, 0.0) for name, share in shares.items()})
    assert {name: [(row.sure, row.bar) for row in rows] for name, rows in found.items()} == {
        "eval_a": [("50-60", "█" * 10), ("90-100", "█" * 20)],
        "eval_b": [("50-60", "█" * 5)],
    }
    assert reliability_bins({"eval_loss": Estimate(1.0, 1.0, 0.0)}) == {}


def test_a_reward_has_no_unit_so_its_change_is_told_in_deviations() -> None:
    """64 prompts, standard error 0.125: a prompt's reward deviates by 1, and 0.5 more is half of that."""
    before, after = {"eval_reward": Estimate(0.25, 64.0, 0.125)}, {"eval_reward": Estimate(0.75, 64.0, 0.125)}
    (row,) = compare(before, after)
    assert row.is_headline
    assert row.change == "0.500 [0.154, 0.846], 0.50 standard deviations of a prompt's before"
    (row,) = compare({"eval_reward": Estimate(0.25, 64.0, 0.0)}, after)
    assert "deviations" not in row.change
