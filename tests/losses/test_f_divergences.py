from __future__ import annotations

import math

import pytest
import torch
from test_preference import make_pair

from burnish.losses import divergences
from burnish.losses.divergence import with_scores

ALPHA = {"f_alpha_divergence_coef": 0.25}


def score(name: str, logratio: float, **options) -> float:
    return float(divergences[name].function(torch.tensor([logratio], dtype=torch.float64), **options))


def options_of(name: str) -> dict[str, float]:
    return ALPHA if name == "alpha_divergence" else {}


def test_values_at_a_ratio_of_two():
    """t = 2: log 2; 1 - 1/2; log(2 t / (t + 1)) = log(4/3); a = 0.25: (2^-0.75 - 1) / -0.75 = 0.5405263140."""
    r = math.log(2)
    assert score("reverse_kl", r) == r
    assert score("forward_kl", r) == pytest.approx(0.5, abs=1e-15)
    assert score("js_divergence", r) == pytest.approx(math.log(4 / 3), abs=1e-15)
    assert score("alpha_divergence", r, **ALPHA) == pytest.approx((1 - 2**-0.75) / 0.75, abs=1e-15)


@pytest.mark.parametrize("r", [-2.0, -0.3, 0.0, 0.7, 3.0])
def test_alpha_runs_from_forward_to_reverse_kl(r):
    assert score("alpha_divergence", r, f_alpha_divergence_coef=0.0) == pytest.approx(score("forward_kl", r))
    assert score("alpha_divergence", r, f_alpha_divergence_coef=1.0) == r
    assert score("alpha_divergence", r, f_alpha_divergence_coef=1 - 1e-5) == pytest.approx(r, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("r", [-1.5, 0.0, 2.0])
def test_the_paper_means_one_minus_alpha(r):
    """f-DPO and TRL 0.25: (1 - t^-a') / a' with a' = 1 - a."""
    paper = 0.75
    assert score("alpha_divergence", r, **ALPHA) == pytest.approx((1 - math.exp(-paper * r)) / paper, abs=1e-12)


@pytest.mark.parametrize("name", list(divergences))
def test_every_score_is_0_at_the_reference_with_slope_1(name):
    """f'(1) = 0 and d f'(t) / d log t = 1 there, except for Jensen-Shannon, whose slope is 1/2."""
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = divergences[name].function(zero, **options_of(name))
    (slope,) = torch.autograd.grad(value.sum(), zero)
    assert value.item() == pytest.approx(0, abs=1e-15)
    assert slope.item() == pytest.approx(0.5 if name == "js_divergence" else 1.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(divergences))
def test_increasing_and_finite_at_extremes(name, dtype):
    r = torch.tensor([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4], dtype=dtype, requires_grad=True)
    values = divergences[name].function(r, **options_of(name))
    (slope,) = torch.autograd.grad(values.sum(), r)
    assert values.isfinite().all()
    assert slope.isfinite().all()
    assert (values.diff() >= 0).all()
    assert (values[1:5].diff() > 0).all()


def test_scores_take_the_place_of_log_ratios():
    pair = make_pair(chosen=[-1.0], ref_chosen=[-1.0 - math.log(2)], rejected=[-3.0], ref_rejected=[-3.0])
    seen = with_scores(pair, divergences["forward_kl"].function)
    assert seen.logratio_diff.item() == pytest.approx(0.5, abs=1e-15)
    assert seen.ref_chosen.item() == 0
    assert torch.equal(seen.chosen_length, pair.chosen_length)
    plain = with_scores(pair, divergences["reverse_kl"].function)
    assert torch.equal(plain.logratio_diff, pair.logratio_diff)
