from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from burnish.advantages import advantages, compute_advantages, has_signal
from burnish.types import RewardTable

EVERY = sorted(advantages)
NAN = math.nan
EPSILON = 1e-4
SCALED = ("group", "turn", "token")  # those that read scale_rewards


def make_table(*columns, weights=None, token_rewards=None) -> RewardTable:
    rewards = torch.tensor(columns, dtype=torch.float64).T  # (N, F)
    weights = [1.0] * len(columns) if weights is None else weights
    return RewardTable(
        rewards=rewards,
        names=tuple(f"r{i}" for i in range(len(columns))),
        weights=torch.tensor(weights, dtype=torch.float64),
        token_rewards=None if token_rewards is None else torch.tensor(token_rewards, dtype=torch.float64),
    )


def random_round(seed=0, groups=4, size=3, length=5):
    """Rewards by two functions, some missing, some on tokens; masks, turns, and groups in no order."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    n = groups * size
    prompt_index = (torch.arange(n) % groups)[torch.randperm(n, generator=generator)]
    ends = torch.randint(1, length + 1, (n, 1), generator=generator)
    mask = torch.arange(length) < ends
    turns = (uniform(n, length) < 0.4).long().cumsum(1)
    token_rewards = torch.where(mask, uniform(n, length) - 0.5, 0.0)
    rewards = torch.stack([token_rewards.sum(1), uniform(n)], 1)
    rewards[uniform(n, 2) < 0.2] = NAN
    token_rewards[rewards[:, 0].isnan()] = 0
    table = RewardTable(
        rewards=rewards, names=("a", "b"), weights=torch.tensor([1.0, 2.0]).double(), token_rewards=token_rewards
    )
    return table, prompt_index, mask, turns


def run(name, table, prompt_index, mask=None, turns=None, **hyper_parameters) -> torch.Tensor:
    entry = advantages[name]
    prompt_index = torch.as_tensor(prompt_index)
    mask = torch.ones(len(prompt_index), 1, dtype=torch.bool) if mask is None else mask
    bound = replace(entry, function=partial(entry.function, **hyper_parameters))
    return compute_advantages(bound, table, prompt_index, mask, turns)


def column(name, table, prompt_index, **hyper_parameters) -> list[float]:
    return run(name, table, prompt_index, **hyper_parameters)[:, 0].tolist()


# Values by hand.


def test_group():
    """Rewards 1, 0, 2 of one prompt: mean 1, unbiased std 1. Rewards 3, 5 of the other: mean 4, std sqrt 2."""
    found = column("group", make_table([1.0, 3.0, 0.0, 5.0, 2.0]), [7, 2, 7, 2, 7])
    one, other = 1 / (1 + EPSILON), 1 / (math.sqrt(2) + EPSILON)
    assert found == pytest.approx([0.0, -other, -one, other, one], abs=1e-12)


def test_group_without_scale_is_dr_grpo():
    assert column("group", make_table([1.0, 0.0, 2.0]), [0, 0, 0], scale_rewards="none") == [0.0, -1.0, 1.0]


def test_group_over_the_std_of_the_batch():
    """Rewards 0, 2, 4, 4 have the mean 2.5 and the squared deviations 6.25, 0.25, 2.25, 2.25: variance 11 / 3."""
    found = column("group", make_table([0.0, 2.0, 4.0, 4.0]), [0, 0, 1, 1], scale_rewards="batch")
    scale = math.sqrt(11 / 3) + EPSILON
    assert found == pytest.approx([-1 / scale, 1 / scale, 0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize("name", SCALED)
def test_scales_by_their_other_spelling(name):
    table, *rest = random_round()
    for word, flag in {"group": True, "none": False}.items():
        assert torch.equal(run(name, table, *rest, scale_rewards=word), run(name, table, *rest, scale_rewards=flag))
    with pytest.raises(ValueError, match=r"scale_rewards='std'.*'batch'"):
        run(name, table, *rest, scale_rewards="std")


def test_rloo():
    """Rewards 1, 0, 5: the means of the others are 2.5, 3 and 0.5."""
    assert column("rloo", make_table([1.0, 0.0, 5.0]), [0, 0, 0]) == pytest.approx([-1.5, -3.0, 4.5])


def test_gdpo():
    """Two functions of spread 1 and 100 pull alike, three times the weight for the second.

    z_1 = (1, -1) / sqrt 2 and z_2 = (-1, 1) / sqrt 2, but for 1e-4 beside each std; s = z_1 + 3 z_2.
    """
    first = 0.5 / (math.sqrt(0.5) + EPSILON)
    second = 50 / (math.sqrt(5000) + EPSILON)
    score = first - 3 * second  # and minus that: mean 0, unbiased std sqrt 2 |score|
    expected = score / (math.sqrt(2) * abs(score) + EPSILON)
    found = column("gdpo", make_table([1.0, 0.0], [0.0, 100.0], weights=[1.0, 3.0]), [0, 0])
    assert found == pytest.approx([expected, -expected], abs=1e-12)


def test_gdpo_leaves_out_groups_that_agree():
    """Groups of a varying function beside one in which none varies: its answers have 0 after whitening too."""
    found = column("gdpo", make_table([1.0, 0.0, 5.0, 5.0]), [0, 0, 1, 1])
    assert found[0] == -found[1] > 0
    assert found[2:] == [0.0, 0.0]


def test_reinforce_pp():
    """Rewards 0, 2, 4, 6 of four prompts: mean 3, variance 20 / 3."""
    found = column("reinforce_pp", make_table([0.0, 2.0, 4.0, 6.0]), [0, 1, 2, 3])
    std = math.sqrt(20 / 3)
    assert found == pytest.approx([-3 / std, -1 / std, 1 / std, 3 / std], abs=1e-7)


def test_reinforce_pp_baseline():
    """Differences to the group's mean -1, 1, -2, 2: variance 10 / 3 over the round."""
    found = column("reinforce_pp_baseline", make_table([0.0, 2.0, 4.0, 8.0]), [0, 0, 1, 1])
    std = math.sqrt(10 / 3)
    assert found == pytest.approx([-1 / std, 1 / std, -2 / std, 2 / std], abs=1e-7)


def test_turn():
    """Two answers. First: rewards 1 and 2 in its two turns, and 4 that belong to no token: it has 7, then 6 to go.
    Second: 3 in its only turn, and 0: 3, and 3 in the place of what it would have to go in turn 1.

    Means 5 and 4.5; without scale the first has 2, then 1.5; the second -2.
    """
    table = make_table([7.0, 3.0], token_rewards=[[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    mask, turns = torch.tensor([[True, True, True], [True, True, False]]), torch.tensor([[0, 0, 1], [0, 0, 99]])
    found = run("turn", table, [0, 0], mask, turns, scale_rewards="none")
    assert torch.where(mask, found, 0.0).tolist() == [[2.0, 2.0, 1.5], [-2.0, -2.0, 0.0]]


def test_turn_scales_each_turn_by_its_own_spread():
    """7 and 3 have the std sqrt 8, 6 and 3 the std sqrt 4.5."""
    table = make_table([7.0, 3.0], token_rewards=[[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    mask, turns = torch.tensor([[True, True, True], [True, True, False]]), torch.tensor([[0, 0, 1], [0, 0, 0]])
    found = run("turn", table, [0, 0], mask, turns)[0]
    expected = [2 / (math.sqrt(8) + EPSILON), 1.5 / (math.sqrt(4.5) + EPSILON)]
    assert found[[0, 2]].tolist() == pytest.approx(expected, abs=1e-12)


def test_token():
    """To go: 3, 2, 2 against 4, 4 and 4 again for the token that the second answer does not have.

    Means 3.5, 3, 3.
    """
    table = make_table([3.0, 4.0], token_rewards=[[1.0, 0.0, 2.0], [0.0, 4.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found = run("token", table, [0, 0], mask, scale_rewards="none")
    assert torch.where(mask, found, 0.0).tolist() == [[-0.5, -1.0, -1.0], [0.5, 1.0, 0.0]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("name", ["turn", "token"])
def test_without_rewards_of_tokens_they_are_group(name, scale):
    table, prompt_index, mask, turns = random_round()
    table = replace(table, token_rewards=None)
    found = run(name, table, prompt_index, mask, turns, scale_rewards=scale)
    expected = run("group", table, prompt_index, mask, scale_rewards=scale).expand(mask.shape)
    torch.testing.assert_close(found[mask], expected[mask])


# Every row.


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [1, 4])
def test_no_signal(name, size):
    """Groups of one, of equal rewards, of answers that nothing scored: exactly 0, never NaN."""
    third = 1 / 3  # no sum of it is exact
    rewards = [third] * size + [0.1] * size + [NAN] * size
    index = [0] * size + [1] * size + [2] * size
    if name == "reinforce_pp":  # whose group is the batch
        rewards = [third] * (2 * size) + [NAN] * size
    found = run(name, make_table(rewards, rewards), index, torch.ones(3 * size, 2, dtype=torch.bool))
    assert (found == 0).all()
    assert not has_signal(make_table(rewards), torch.tensor(index)).any()


@pytest.mark.parametrize("name", EVERY)
def test_unscored_rows_are_as_if_they_were_not_there(name):
    table, prompt_index, mask, turns = random_round(seed=1)
    keep = table.scored.any(1)
    table.rewards[keep.nonzero()[0]] = NAN  # at least one that is scored by nothing
    table = replace(table, token_rewards=torch.where(table.scored[:, :1], table.token_rewards, 0.0))
    keep = table.scored.any(1)
    assert not keep.all()
    whole = run(name, table, prompt_index, mask, turns)
    small = replace(table, rewards=table.rewards[keep], token_rewards=table.token_rewards[keep])
    part = run(name, small, prompt_index[keep], mask[keep], turns[keep])
    assert (whole[~keep] == 0).all()
    compared = mask if whole.shape == mask.shape else torch.ones_like(whole, dtype=torch.bool)
    torch.testing.assert_close(whole[keep][compared[keep]], part[compared[keep]], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", EVERY)
def test_order_of_rows_and_names_of_groups(name):
    table, prompt_index, mask, turns = random_round(seed=2)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(3))
    moved = replace(table, rewards=table.rewards[order], token_rewards=table.token_rewards[order])
    names = torch.tensor([40, 3, 1000, 17])[prompt_index]
    found = run(name, moved, names[order], mask[order], turns[order])
    torch.testing.assert_close(found, run(name, table, prompt_index, mask, turns)[order], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", EVERY)
def test_padding_content(name):
    """Turns of tokens that are not trained, and rewards of none: only the trained tokens are compared."""
    table, prompt_index, mask, turns = random_round(seed=4)
    other = torch.where(mask, turns, 5000)
    found, again = (run(name, table, prompt_index, mask, t) for t in (turns, other))
    compared = mask if found.shape == mask.shape else torch.ones_like(found, dtype=torch.bool)
    assert torch.equal(found[compared], again[compared])


@pytest.mark.parametrize("name", EVERY)
def test_better_answers_have_higher_advantages(name):
    table = make_table([0.3, 0.9, 0.1, 0.5])
    found = run(name, table, [0, 0, 0, 0], torch.ones(4, 2, dtype=torch.bool))[:, 0]
    assert found.argsort().tolist() == [2, 0, 3, 1]
    assert found[2] < 0 < found[1]


@pytest.mark.parametrize("name", EVERY)
def test_float32_and_no_gradient(name):
    table, prompt_index, mask, turns = random_round(seed=5)
    table = replace(
        table,
        rewards=table.rewards.float(),
        weights=table.weights.float(),
        token_rewards=table.token_rewards.float().requires_grad_(),
    )
    found = run(name, table, prompt_index, mask, turns)
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize("name", EVERY)
def test_facts_and_documentation(name):
    entry = advantages[name]
    assert entry.facts["per"] in ("row", "token")
    assert entry.paper is not None
    assert "A = " in entry.function.__doc__ or "A_" in entry.function.__doc__
    assert "Source:" in entry.function.__doc__


# The call of a function of the user.


def test_a_function_of_the_user_is_checked():
    table, prompt_index, mask, _ = random_round(seed=6)

    def flat(rewards, prompt_index):
        return rewards.total()

    def undefined(rewards, prompt_index):
        return torch.tensor([[0.0], [math.inf], [0.0], [-math.inf]])

    shapes = r"'flat' returned shape \(12,\) for 12 answers of up to 5 tokens: return \(12, 1\), or \(12, 5\)"
    with pytest.raises(ValueError, match=shapes):
        compute_advantages(advantages.entry(flat), table, prompt_index, mask)
    table, mask = make_table([1.0, 2.0, 3.0, 4.0]), torch.ones(4, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"'undefined' is not finite for answer 1 .* \{'r0': 2\.0\}"):
        compute_advantages(advantages.entry(undefined), table, torch.zeros(4).long(), mask)


def test_a_function_of_the_user_may_leave_unscored_rows_alone():
    """Whatever it makes of NaN, the advantage of an answer that nothing scored is 0."""
    table = make_table([1.0, NAN])

    def total(rewards, prompt_index):
        return rewards.total()[:, None]

    found = compute_advantages(advantages.entry(total), table, torch.tensor([0, 0]), torch.ones(2, 3).bool())
    assert found.tolist() == [[1.0], [0.0]]


def test_signal():
    table = make_table([1.0, 0.0, 2.0, 2.0, 5.0, NAN, NAN])
    assert has_signal(table, torch.tensor([0, 0, 1, 1, 2, 2, 3])).tolist() == [True, True] + [False] * 5
