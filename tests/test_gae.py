from __future__ import annotations

import pytest
import torch

from burnish.gae import gae, length_lambda, rewards_at_tokens, token_moments, whiten

# Advantages and returns.


def test_gae_by_hand():
    """gamma = 0.5, lam = 0.5; rewards 0, 1; values 2, 4. delta_1 = 1 - 4 = -3; delta_0 = 0.5 x 4 - 2 = 0.

    A_1 = -3, A_0 = 0 + 0.25 x -3 = -0.75; returns 1.25 and 1.
    """
    values, rewards = torch.tensor([[2.0, 4.0, 9.0]]), torch.tensor([[0.0, 1.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    found, returns = gae(values, rewards, mask, gamma=0.5, lam=0.5)
    assert found.tolist() == [[-0.75, -3.0, 0.0]]
    assert returns.tolist() == [[1.25, 1.0, 0.0]]


def test_gae_of_an_answer_that_was_cut():
    """Bootstrapped by 8: delta_1 = 1 + 4 - 4 = 1, A_0 = 0 + 0.25 x 1."""
    values, rewards, mask = torch.tensor([[2.0, 4.0]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 2).bool()
    found, _ = gae(values, rewards, mask, gamma=0.5, lam=0.5, bootstrap=torch.tensor([[8.0]]))
    assert found.tolist() == [[0.25, 1.0]]


def test_gae_passes_over_tokens_that_nobody_chose():
    """An answer with untrained tokens in the middle is the answer without them, whatever they hold."""
    generator = torch.Generator().manual_seed(0)
    values, rewards = torch.rand(2, 2, 3, generator=generator).unbind(0)
    dense = gae(values, rewards, torch.ones(2, 3).bool(), gamma=0.9, lam=0.8)
    wide = torch.full((2, 5), 1e6)
    spread = [wide.index_copy(1, torch.tensor([0, 3, 4]), x) for x in (values, rewards)]
    mask = torch.tensor([[True, False, False, True, True]]).expand(2, 5)
    for found, expected in zip(gae(*spread, mask, gamma=0.9, lam=0.8), dense, strict=True):
        torch.testing.assert_close(found[:, [0, 3, 4]], expected)
        assert (found[:, 1:3] == 0).all()


def test_gae_without_a_critic_is_what_is_left_to_earn():
    """gamma = lam = 1, V = 0: A_t is the sum of rewards from t on."""
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    found, _ = gae(torch.zeros(1, 3), rewards, torch.ones(1, 3).bool(), gamma=1.0, lam=1.0)
    assert found.tolist() == [[7.0, 6.0, 4.0]]


def test_gae_with_a_lam_for_each_answer():
    values, rewards = torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[0.0, 5.0], [0.0, 5.0]])
    mask = torch.ones(2, 2).bool()
    found, _ = gae(values, rewards, mask, gamma=1.0, lam=torch.tensor([0.0, 1.0]))
    assert found.tolist() == [[1.0, 3.0], [4.0, 3.0]]


def test_whiten():
    """1, 3 and 5 have the mean 3 and the unbiased variance 4."""
    values, mask = (
        torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]]),
        torch.tensor([[True, True, False], [True] + [False] * 2]),
    )
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    kept = whiten(values, mask, shift_mean=False)
    torch.testing.assert_close(kept, torch.tensor([[2.0, 3.0, 0.0], [4.0, 0.0, 0.0]]))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_whiten_without_spread(count):
    mask = torch.arange(3)[None] < count
    assert whiten(torch.full((1, 3), 2.0), mask).tolist() == [[0.0, 0.0, 0.0]]


def test_whiten_by_the_moments_of_the_whole_round():
    """Each half by the moments of both is the half of both whitened together."""
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    moments = token_moments(values, mask)
    assert [float(moment) for moment in moments] == [3.0, 4.0]
    for shift in (True, False):
        parts = [whiten(values[[i]], mask[[i]], shift_mean=shift, moments=moments) for i in (0, 1)]
        torch.testing.assert_close(torch.cat(parts), whiten(values, mask, shift_mean=shift))


# Rewards of tokens.


def test_the_score_is_at_the_last_real_token():
    """Not at padding, nor at the tool's tokens behind it; of an answer without a trained token it is nowhere."""
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False], [True, False, False]])
    found = rewards_at_tokens(torch.tensor([1.0, 2.0, 4.0, torch.nan]), mask)
    assert found.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_rewards_of_tokens_are_added():
    """What an untrained token earns has the trained one before it, or else the first one; all of it is kept."""
    mask = torch.tensor([[True, True, False], [False, True, True], [True, False, True], [False, False, False]])
    tokens = torch.tensor([[0.5, 0.25, 1.0], [4.0, 0.5, 0.25], [0.5, 4.0, 0.25], [1.0, 1.0, 1.0]])
    found = rewards_at_tokens(torch.tensor([2.0, 2.0, 2.0, 2.0]), mask, tokens)
    assert found.tolist() == [[0.5, 3.25, 0.0], [0.0, 4.5, 2.25], [4.5, 0.0, 2.25], [0.0, 0.0, 0.0]]


def test_the_reward_of_each_token_is_the_gain_of_the_answer():
    """gamma = lam = 1: the advantage of the first token is all that was earned, less its value."""
    generator = torch.Generator().manual_seed(1)
    values, tokens = torch.rand(2, 4, 6, generator=generator, dtype=torch.float64).unbind(0)
    mask = torch.arange(6) < torch.tensor([[1], [3], [6], [4]])
    tokens = torch.where(mask, tokens, 0.0)
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    rewards = rewards_at_tokens(scores, mask, tokens)
    found, returns = gae(values, rewards, mask, gamma=1.0, lam=1.0)
    earned = scores + tokens.sum(1)
    torch.testing.assert_close(found[:, 0], earned - values[:, 0])
    torch.testing.assert_close(returns[:, 0], earned)


def test_lambda_by_length():
    """alpha = 0.05: lengths 10, 20, 40 and 100 have 1 - 2, 1 - 1, 1 - 1/2 and 1 - 1/5, and no less than 0."""
    mask = torch.arange(100) < torch.tensor([[10], [20], [40], [100]])
    torch.testing.assert_close(length_lambda(mask, alpha=0.05), torch.tensor([0.0, 0.0, 0.5, 0.8]).double())
    assert length_lambda(torch.zeros(1, 3).bool(), alpha=0.05).tolist() == [0.0]


# What must not matter.


def random_answers(seed=0, size=6, length=7):
    generator = torch.Generator().manual_seed(seed)
    values, rewards = torch.randn(2, size, length, generator=generator, dtype=torch.float64).unbind(0)
    mask = torch.arange(length) < torch.randint(1, length + 1, (size, 1), generator=generator)
    return values, rewards, mask, torch.randn(size, 1, generator=generator, dtype=torch.float64)


def test_padding_does_not_matter():
    """Neither what it holds nor how much of it there is."""
    values, rewards, mask, bootstrap = random_answers()
    options = {"gamma": 0.9, "lam": 0.8, "bootstrap": bootstrap}
    expected = gae(values, rewards, mask, **options)
    junk = [torch.where(mask, x, float("nan")) for x in (values, rewards)]
    padded = [torch.nn.functional.pad(x, (0, 3), value=7.0) for x in junk]
    found = gae(*padded, torch.nn.functional.pad(mask, (0, 3)), **options)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine[:, :7], theirs)
        assert not mine[:, 7:].any()


def test_answers_do_not_depend_on_each_other():
    values, rewards, mask, bootstrap = random_answers(1)
    whole = gae(values, rewards, mask, gamma=0.9, lam=0.8, bootstrap=bootstrap)
    for row in range(len(mask)):
        one = [x[[row]] for x in (values, rewards, mask)]
        found = gae(*one, gamma=0.9, lam=0.8, bootstrap=bootstrap[[row]])
        for mine, theirs in zip(found, whole, strict=True):
            assert torch.equal(mine[0], theirs[row])


def test_returns_with_lambda_0_and_1():
    """0: one step and the critic; 1: all that is earned, and what the critic says of the end."""
    values, rewards, mask, bootstrap = random_answers(2)
    _, one_step = gae(values, rewards, mask, gamma=0.9, lam=0.0, bootstrap=bootstrap)
    _, all_steps = gae(values, rewards, mask, gamma=0.9, lam=1.0, bootstrap=bootstrap)
    for row, length in enumerate(mask.sum(1).tolist()):
        after = torch.cat([values[row, 1:length], bootstrap[row]])
        torch.testing.assert_close(one_step[row, :length], rewards[row, :length] + 0.9 * after)
        discounts = 0.9 ** torch.arange(length + 1, dtype=torch.float64)
        earned = torch.cat([rewards[row, :length], bootstrap[row]])
        for start in range(length):
            expected = (earned[start:] * discounts[: length + 1 - start]).sum()
            torch.testing.assert_close(all_steps[row, start], expected)
