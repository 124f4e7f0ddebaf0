"""Alarms of a round by its numbers: when each goes off, and that it says what it means and what to change."""

from __future__ import annotations

import pytest

from burnish.rollout.alarms import alarms

HEALTHY = {
    "reward": 0.4,
    "frac_unscored": 0.0,
    "frac_reward_zero_std": 0.2,
    "completions/clipped_ratio": 0.3,
    "completions/mean_length": 120.0,
    "completions/duplicate_ratio": 0.1,
}


@pytest.mark.parametrize(
    ("changed", "codes"),
    [
        ({}, []),
        ({"frac_unscored": 0.99, "frac_reward_zero_std": 0.99}, []),
        ({"frac_unscored": 1.0, "frac_reward_zero_std": 1.0}, ["no_rewards"]),
        ({"frac_reward_zero_std": 1.0}, ["no_signal"]),
        ({"completions/clipped_ratio": 0.89}, []),
        ({"completions/clipped_ratio": 0.9}, ["truncated"]),
        ({"completions/duplicate_ratio": 0.49}, []),
        ({"completions/duplicate_ratio": 0.5}, ["near_greedy"]),
        ({"completions/duplicate_ratio": 1.0, "completions/mean_length": 19.0}, []),
        ({"frac_reward_zero_std": 1.0, "completions/duplicate_ratio": 1.0}, ["no_signal", "near_greedy"]),
    ],
    ids=str,
)
def test_when_an_alarm_goes_off(changed, codes):
    assert list(alarms({**HEALTHY, **changed})) == codes


def test_rewards_that_only_measure_set_off_no_alarm():
    """A trainer with `learns_from_rewards = False` is told of answers that are cut, and not of equal rewards."""
    numbers = {**HEALTHY, "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0}
    assert list(alarms(numbers, learns_from_rewards=False)) == ["truncated"]
    assert not alarms({**HEALTHY, "frac_unscored": 1.0}, learns_from_rewards=False)


@pytest.mark.parametrize(
    ("changed", "meaning", "changes"),
    [
        ({"frac_unscored": 1.0}, "(all returned None), so nothing is learned", ["conditions", "columns"]),
        (
            {"frac_reward_zero_std": 1.0},
            "all answers have the same reward (mean 0.4), so nothing is learned",
            ["easier prompts", "harder prompts", "num_generations", "dynamic_sampling=True"],
        ),
        (
            {"completions/clipped_ratio": 0.95},
            "95% of the answers of this round were cut at max_completion_length",
            ["raise it", "chat template", "end-of-sequence token"],
        ),
        (
            {"completions/duplicate_ratio": 0.75},
            "75% of the answers of this round equal another one of their group: sampling is nearly greedy",
            ["Raise temperature", "top_k, top_p and min_p", "learning rate", "beta or entropy_coef"],
        ),
    ],
    ids=["no_rewards", "no_signal", "truncated", "near_greedy"],
)
def test_an_alarm_says_what_it_means_and_what_to_change(changed, meaning, changes):
    (message,) = alarms({**HEALTHY, **changed}).values()
    assert meaning in message
    assert all(change in message for change in changes)


def test_numbers_that_are_not_there_raise_no_alarm():
    assert alarms({}) == {}
