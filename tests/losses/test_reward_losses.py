"""Reward losses: numbers by hand, and what holds for every row of the table."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.losses import reward_losses
from burnish.losses.reward import centering
from burnish.types import PAIR_UNITS, PairScores

EVERY = sorted(reward_losses)
THREE = [[0, 1], [0, 2], [1, 2]]  # the pairs of a ranking of three answers


def make_scores(scores, pairs, *, dtype=torch.float64, **columns) -> PairScores:
    numbers = {name: None if values is None else torch.tensor(values, dtype=dtype) for name, values in columns.items()}
    return PairScores(scores=torch.tensor(scores, dtype=dtype), pairs=torch.tensor(pairs), **numbers)


def call(name: str, scores: PairScores, **hyper_parameters) -> list[float]:
    return reward_losses[name].function(scores, **hyper_parameters).tolist()


def closed(name: str):
    """The loss at its defaults, and with labels smoothed where it has them."""
    names = reward_losses[name].hyper_parameters
    assert inspect.Parameter.empty not in names.values()
    smoothing = {"label_smoothing": 0.1} if "label_smoothing" in names else {}
    return lambda scores: reward_losses[name].function(scores, **smoothing)


def test_bradley_terry_values():
    """s_w - s_l = 1.5: log(1 + e^-1.5) = 0.2014132780. With a margin of 1: log(1 + e^-0.5) = 0.4740769842."""
    assert call("bradley_terry", make_scores([2.0, 0.5], [[0, 1]])) == pytest.approx([0.20141327798275], abs=1e-12)
    with_margin = make_scores([2.0, 0.5], [[0, 1]], margin=[1.0])
    assert call("bradley_terry", with_margin) == pytest.approx([0.4740769841801067], abs=1e-12)


def test_label_smoothing_adds_e_times_the_lead():
    """-log σ(-x) = -log σ(x) + x: smoothing by 0.1 adds 0.1 x 0.5 to 0.4740769842."""
    scores = make_scores([2.0, 0.5], [[0, 1]], margin=[1.0])
    assert call("bradley_terry", scores, label_smoothing=0.1) == pytest.approx([0.5240769841801067], abs=1e-12)


def test_a_tie_is_the_cross_entropy_with_one_half():
    """Both orders with weight ½, the margin turned: the minimum is where the lead is the margin, and its value log 2."""
    lead = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    scores = PairScores(
        scores=torch.cat([lead, torch.zeros(1)]),
        pairs=torch.tensor([[0, 1], [1, 0]]),
        margin=torch.tensor([1.0, -1.0], dtype=torch.float64),
    )
    loss = 0.5 * reward_losses["bradley_terry"].function(scores).sum()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert torch.autograd.grad(loss, lead)[0].item() == pytest.approx(0, abs=1e-12)


def test_plackett_luce_of_three():
    """Scores log 4, log 2, log 1: P = 4/7 x 2/3, so the sum over the pairs is log(7/4) + log(3/2)."""
    scores = make_scores([math.log(4), math.log(2), 0.0], THREE)
    first, second, third = call("plackett_luce", scores)
    assert first == second == pytest.approx(math.log(7 / 4) / 2, abs=1e-12)
    assert third == pytest.approx(math.log(3 / 2), abs=1e-12)


def test_plackett_luce_is_a_distribution_over_rankings():
    """The probabilities of the six orders of three answers sum to 1."""
    scores = [0.3, -1.1, 2.0]
    total = 0.0
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        pairs = [[order[i], order[j]] for i, j in ((0, 1), (0, 2), (1, 2))]
        total += math.exp(-sum(call("plackett_luce", make_scores(scores, pairs))))
    assert total == pytest.approx(1.0, abs=1e-12)


def test_plackett_luce_of_two_is_bradley_terry():
    scores = make_scores([0.4, -0.7, 1.0, 2.0], [[0, 1], [3, 2]])
    assert call("plackett_luce", scores) == pytest.approx(call("bradley_terry", scores), abs=1e-12)


def test_regression_is_of_rows():
    scores = make_scores([2.0, 0.5, 0.0], THREE, targets=[1.0, 1.0, 0.0])
    assert call("regression", scores) == [1.0, 0.25, 0.0]
    assert reward_losses["regression"].facts["per"] == "row"
    with pytest.raises(ValueError, match="the scores that rows carry, and these have none"):
        call("regression", make_scores([2.0, 0.5], [[0, 1]]))


def test_centering():
    """(2 + 0.5)² = 6.25 for each pair, under its coefficient; no term without one."""
    scores = make_scores([2.0, 0.5], [[0, 1]])
    (term,) = centering(scores, coefficient=0.01)
    assert (term.losses.tolist(), term.per, term.coefficient, term.name) == ([6.25], "pair", 0.01, "center_rewards")
    assert centering(scores, coefficient=None) == ()


# Every row of the table.


def random_scores(seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> PairScores:
    """Two rankings of three answers."""
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(6, generator=generator, dtype=torch.float64)
    pairs = torch.tensor([*THREE, *([a + 3, b + 3] for a, b in THREE)])
    targets = torch.randn(6, generator=generator, dtype=torch.float64)
    return PairScores(scores=scores.to(dtype), pairs=pairs, targets=targets.to(dtype))


def with_scores(scores: PairScores, values: torch.Tensor) -> PairScores:
    return PairScores(scores=values, pairs=scores.pairs, margin=scores.margin, targets=scores.targets)


@pytest.mark.parametrize("name", EVERY)
def test_shape_type_and_gradient(name):
    scores = random_scores()
    losses = closed(name)(scores)
    per = reward_losses[name].facts["per"]
    assert losses.shape == ((6,) if per in PAIR_UNITS else scores.scores.shape)
    assert losses.dtype == torch.float64
    leaf = scores.scores.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: closed(name)(with_scores(scores, values)), leaf)


@pytest.mark.parametrize("name", EVERY)
def test_order_of_pairs_and_rows_changes_nothing(name):
    scores, per = random_scores(), reward_losses[name].facts["per"]
    order = torch.tensor([4, 2, 0, 5, 3, 1])
    shuffled = closed(name)(PairScores(scores=scores.scores, pairs=scores.pairs[order], targets=scores.targets))
    expected = closed(name)(scores)
    torch.testing.assert_close(shuffled, expected[order] if per in PAIR_UNITS else expected, rtol=0, atol=1e-12)
    place = order.argsort()
    moved = PairScores(scores=scores.scores[order], pairs=place[scores.pairs], targets=scores.targets[order])
    torch.testing.assert_close(
        closed(name)(moved), expected if per in PAIR_UNITS else expected[order], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", EVERY)
def test_finite_at_extremes(name):
    """Values and gradients, in float32, at scores of ± 1e4."""
    scores = random_scores(scale=1e4, dtype=torch.float32)
    leaf = scores.scores.clone().requires_grad_()
    losses = closed(name)(with_scores(scores, leaf))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert leaf.grad.isfinite().all()


PREFERENCES = [name for name in EVERY if reward_losses[name].facts["per"] in PAIR_UNITS]


@pytest.mark.parametrize("name", PREFERENCES)
@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 100))
def test_a_preference_is_about_differences(name, shift, seed):
    """A constant on all scores changes no loss; a better chosen answer lowers it."""
    scores = random_scores(seed)
    moved = closed(name)(with_scores(scores, scores.scores + shift))
    torch.testing.assert_close(moved, closed(name)(scores), rtol=0, atol=1e-9)
    leaf = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    closed(name)(PairScores(scores=leaf, pairs=torch.tensor([[0, 1]]))).sum().backward()
    assert leaf.grad[0] < 0 < leaf.grad[1]
