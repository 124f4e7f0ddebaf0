"""What a round was like, in numbers that can be counted by hand."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from burnish.data.collate import rollout_batch
from burnish.rollout.collect import PromptRow, Round, ScoredGroups
from burnish.rollout.statistics import SOLVE_RATES, pass_at_k, powers_of_two, round_statistics, solve_statistics
from burnish.rollout.whole import gather_round
from burnish.types import Completion, RewardTable

NAN = math.nan


def completion(tokens: list[int], finish_reason: str = "stop") -> Completion:
    return Completion(
        prompt_ids=torch.tensor([1]),
        token_ids=torch.tensor(tokens),
        logps=torch.full((len(tokens),), -1.0),
        kept_mass=torch.ones(len(tokens)),
        loss_mask=torch.ones(len(tokens), dtype=torch.bool),
        finish_reason=finish_reason,
    )


def round_of(completions: list[Completion], rewards: list[list[float]], advantages: list[float], **counts) -> Round:
    """A round of two prompts."""
    rows = [PromptRow(row_id=i, ids=torch.tensor([1]), prompt="?", columns={}) for i in range(2)]
    width = len(rewards[0])
    table = RewardTable(
        rewards=torch.tensor(rewards), names=("first", "second")[:width], weights=torch.tensor([1.0, 2.0])[:width]
    )
    batch = rollout_batch([row.ids for row in rows], completions, row_ids=[0, 1], pad_token_id=0)
    batch = type(batch)(**{**vars(batch), "advantages": torch.tensor(advantages)[:, None]})
    groups = ScoredGroups(prompts=tuple(rows), completions=tuple(completions), rewards=table)
    return Round(batch=batch, groups=groups, whole=gather_round(table, batch), **counts)


@pytest.fixture
def found() -> Round:
    """Group 0: two equal answers, of which one is unscored by all, and a cut one; group 1 is without signal."""
    completions = [
        completion([5, 2]), completion([5, 2]), completion([7, 7, 7, 7], "length"),
        completion([8, 2]), completion([9, 9, 2]), completion([4]),
    ]  # fmt: skip
    rewards = [[1.0, NAN], [NAN, NAN], [0.0, 0.25], [0.5, 0.5], [0.5, 0.5], [1.5, 0.0]]
    return round_of(completions, rewards, [0.7, 0.0, -0.7, 0.0, 0.0, 0.0], num_replaced=3, num_surplus=1)


def test_lengths_and_cut_answers(found):
    """Lengths 2, 2, 4, 2, 3, 1; the one of 4 was cut."""
    numbers = round_statistics(found, solved_reward=1.0)
    assert numbers["completions/mean_length"] == pytest.approx(14 / 6)
    assert (numbers["completions/min_length"], numbers["completions/max_length"]) == (1, 4)
    assert numbers["completions/clipped_ratio"] == pytest.approx(1 / 6)
    assert numbers["completions/mean_terminated_length"] == pytest.approx(10 / 5)
    assert numbers["completions/min_terminated_length"] == 1
    assert numbers["completions/max_terminated_length"] == 3


def test_rewards(found):
    """Totals 1, nothing, 0 + 2 x 0.25, and three times 1.5: mean 6 / 5 over the scored ones."""
    numbers = round_statistics(found, solved_reward=1.0)
    totals = torch.tensor([1.0, 0.5, 1.5, 1.5, 1.5])
    assert numbers["reward"] == pytest.approx(1.2)
    assert numbers["reward_std"] == pytest.approx(float(totals.std()))
    assert numbers["rewards/first/mean"] == pytest.approx(3.5 / 5)
    assert numbers["rewards/second/mean"] == pytest.approx(1.25 / 4)
    assert numbers["rewards/second/std"] == pytest.approx(float(torch.tensor([0.25, 0.5, 0.5, 0.0]).std()))
    assert numbers["frac_unscored"] == pytest.approx(1 / 6)
    assert numbers["frac_reward_zero_std"] == 0.5


def test_counts(found):
    """Two of the six answers have the same tokens as another of their group, two have an advantage."""
    numbers = round_statistics(found, solved_reward=1.0)
    assert numbers["completions/duplicate_ratio"] == pytest.approx(2 / 6)
    assert numbers["frac_rows_with_gradient"] == pytest.approx(2 / 6)
    assert numbers["dynamic_sampling/replaced_groups"] == 3
    assert numbers["dynamic_sampling/surplus_groups"] == 1


def test_equal_answers_of_two_groups_are_no_duplicates():
    completions = [completion([5, 2]), completion([6, 2])] * 2
    numbers = round_statistics(round_of(completions, [[1.0], [0.0]] * 2, [1.0, -1.0] * 2), solved_reward=1.0)
    assert numbers["completions/duplicate_ratio"] == 0


def test_a_masked_answer_carries_no_gradient():
    """The cut answer has an advantage, and no token that is trained."""
    completions = [completion([5, 2]), completion([6, 6], "length")] * 2
    plain = round_of(completions, [[1.0], [0.0]] * 2, [1.0, -1.0] * 2)
    batch = rollout_batch([torch.tensor([1])] * 2, completions, row_ids=[0, 1], pad_token_id=0, mask_truncated=True)
    masked = type(batch)(**{**vars(batch), "advantages": plain.batch.advantages})
    found = Round(batch=masked, groups=plain.groups, whole=plain.whole)
    assert round_statistics(plain, solved_reward=1.0)["frac_rows_with_gradient"] == 1
    assert round_statistics(found, solved_reward=1.0)["frac_rows_with_gradient"] == 0.5


def test_what_was_not_measured_is_left_out():
    """No answer was scored, and all were cut: no mean reward, no terminated length, and no NaN in a log line."""
    completions = [completion([5, 6], "length")] * 4
    numbers = round_statistics(round_of(completions, [[NAN]] * 4, [0.0] * 4), solved_reward=1.0)
    assert not any(math.isnan(value) for value in numbers.values())
    assert "reward" not in numbers
    assert "rewards/first/mean" not in numbers
    assert "completions/mean_terminated_length" not in numbers
    assert numbers["frac_unscored"] == 1
    assert numbers["frac_reward_zero_std"] == 1
    assert numbers["solve_rate"] == 0


def test_the_histogram_of_solve_rates():
    """Of eight answers 0, 1, 2, 3, 4, 6, 7 and 8 are right: 0 and 1 have bins of their own, upper ends belong."""
    right = [0, 1, 2, 3, 4, 6, 7, 8]
    totals = torch.tensor([[1.0] * count + [0.0] * (8 - count) for count in right])
    numbers = solve_statistics(totals, solved_reward=1.0)
    expected = {"0": 1, "0-25": 2, "25-50": 2, "50-75": 1, "75-100": 1, "100": 1}
    assert {name: numbers[f"solve_rate/{name}"] * 8 for name in SOLVE_RATES} == pytest.approx(expected)
    assert numbers["solve_rate"] == pytest.approx(sum(right) / 64)
    assert numbers["pass@1"] == pytest.approx(sum(right) / 64)
    assert {name for name in numbers if name.startswith("pass@")} == {"pass@1", "pass@2", "pass@4", "pass@8"}


def test_an_unscored_answer_is_not_solved():
    assert solve_statistics(torch.tensor([[NAN, 1.0]]), solved_reward=1.0)["solve_rate"] == 0.5


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(size):
    for right in range(size + 1):
        solved = [True] * right + [False] * (size - right)
        for k in range(1, size + 1):
            subsets = list(combinations(solved, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            closed = 1 - math.comb(size - right, k) / math.comb(size, k)
            found = float(pass_at_k(torch.tensor([right]), size, k))
            assert found == pytest.approx(share, abs=1e-12) == pytest.approx(closed, abs=1e-12)


def test_powers_of_two():
    assert [powers_of_two(n) for n in (1, 2, 3, 8, 9)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8], [1, 2, 4, 8]]
