from __future__ import annotations

import math

import pytest
import torch

from burnish.losses.selection import entropy_threshold, off_policy_mask, top_entropy_mask


@pytest.mark.parametrize(("share", "kept"), [(0.2, 3), (0.3, 4), (0.36, 4), (0.5, 6), (1.0, 11), (0.05, 1)])
def test_top_share(share, kept):
    """Of 11 tokens those at or above the (1 - share) quantile, as numpy's linear interpolation has it."""
    entropies = torch.arange(11, dtype=torch.float64).flip(0)
    threshold = entropy_threshold(entropies, top_entropy_quantile=share)
    assert int((entropies >= threshold).sum()) == kept
    by_torch = torch.quantile(entropies, 1 - share)
    assert int((entropies >= by_torch - 1e-9).sum()) == kept


def test_ties_are_kept_together():
    threshold = entropy_threshold(torch.tensor([1.0, 1.0, 1.0, 0.0]), top_entropy_quantile=0.25)
    assert threshold == 1.0


@pytest.mark.parametrize("share", [0.1, 0.7, 0.9])
def test_a_share_that_binary_numbers_miss(share):
    """1 - share times the last place is a whole number but for rounding: the token there is kept, not the next."""
    threshold = entropy_threshold(torch.arange(1001, dtype=torch.float64), top_entropy_quantile=share)
    assert threshold == round(1000 * (1 - share))


def test_mask_keeps_to_trained_tokens():
    entropy = torch.tensor([[2.0, 0.5, 9.0], [1.0, 3.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    threshold = entropy_threshold(entropy[mask], top_entropy_quantile=0.5)
    assert top_entropy_mask(entropy, mask, threshold).tolist() == [[True, False, False], [False, True, False]]


def test_a_round_without_tokens_keeps_none():
    threshold = entropy_threshold(torch.tensor([]), top_entropy_quantile=0.5)
    assert math.isinf(threshold)
    assert not top_entropy_mask(torch.ones(1, 2), torch.zeros(1, 2).bool(), threshold).any()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_is_in_0_1(share):
    with pytest.raises(
        ValueError, match=f"top_entropy_quantile={share} .* keeps the fifth with the highest entropy, 1 keeps all"
    ):
        entropy_threshold(torch.ones(3), top_entropy_quantile=share)


def test_off_policy_answers():
    """Mean gaps 0.5, 2, 2, and -3 over trained tokens; only the bad one beyond 1 nat is dropped."""
    sampler_logps = torch.tensor([[-1.0, -1.0], [-1.0, -1.0], [-1.0, -1.0], [-5.0, -1.0]])
    logps = torch.tensor([[-1.5, -1.5], [-3.0, -99.0], [-2.0, -4.0], [-2.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    advantages = torch.tensor([[-1.0], [-1.0], [1.0], [-1.0]])
    found = off_policy_mask(advantages, logps, sampler_logps, mask, off_policy_mask_threshold=1.0)
    assert found.tolist() == [[True], [False], [True], [True]]


def test_at_the_threshold_and_without_advantage_all_is_kept():
    """Gaps of 1 and of 3 nats where 1 is allowed: a bad answer is kept at the threshold, and one of 0 anywhere."""
    logps, sampler_logps = torch.tensor([[-2.0], [-4.0], [-4.0]]), torch.full((3, 1), -1.0)
    advantages, mask = torch.tensor([[-1.0], [0.0], [-0.5]]), torch.ones(3, 1).bool()
    found = off_policy_mask(advantages, logps, sampler_logps, mask, off_policy_mask_threshold=1.0)
    assert found.tolist() == [[True], [True], [False]]


def test_off_policy_by_token():
    """With one advantage a token, the bad tokens of an answer that was left behind are dropped."""
    logps, sampler_logps, mask = torch.full((1, 2), -4.0), torch.full((1, 2), -1.0), torch.ones(1, 2).bool()
    found = off_policy_mask(torch.tensor([[-1.0, 1.0]]), logps, sampler_logps, mask, off_policy_mask_threshold=1.0)
    assert found.tolist() == [[False, True]]


def test_a_log_prob_that_the_engine_did_not_give_is_no_evidence():
    logps, mask = torch.tensor([[-1.0, -9.0]]), torch.ones(1, 2).bool()
    sampler_logps = torch.tensor([[-1.0, math.nan]])
    assert off_policy_mask(-torch.ones(1, 1), logps, sampler_logps, mask, off_policy_mask_threshold=0.1).all()
