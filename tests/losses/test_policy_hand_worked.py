"""Numbers worked out by hand, for the policy losses beyond those of test_policy.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_policy import make_tokens, random_tokens, run

from burnish.types import PolicyTokens


def test_cispo_by_hand():
    """Ratios 4 and 8 under the cap 5, or 8: -min(r, h) A log r; only what is above the cap is counted."""
    tokens = make_tokens([[4.0, 8.0]], [[2.0]])
    found = run("cispo", tokens)
    expected = [-4 * 2 * math.log(4), -5 * 2 * math.log(8)]
    assert found.losses[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert found.metrics["cispo_clip_ratio"].tolist() == [[0.0, 1.0]]
    at_the_cap = run("cispo", tokens, epsilon_high=8.0).metrics["cispo_clip_ratio"]
    assert at_the_cap.tolist() == [[0.0, 0.0]]
    assert run("cispo", tokens, epsilon_high=0.5).losses[0, 0].item() == pytest.approx(-math.log(4), abs=1e-12)


@pytest.mark.parametrize("cap", [0.0, -1.0])
def test_cispo_needs_a_cap_above_0(cap):
    with pytest.raises(ValueError, match=rf"epsilon_high={cap}: in the policy loss cispo it is the largest weight"):
        run("cispo", make_tokens([[4.0]], [[2.0]]), epsilon_high=cap)


def test_sapo_by_hand():
    """Ratio 2: -(4 / tau) σ(tau) A with tau = 1 for good tokens, 1.05 for bad ones."""

    def expected(tau, advantage):
        return -4 / tau / (1 + math.exp(-tau)) * advantage

    tokens = make_tokens([[2.0], [2.0]], [[0.5], [-0.5]])
    losses = run("sapo", tokens).losses[:, 0].tolist()
    assert losses == pytest.approx([expected(1.0, 0.5), expected(1.05, -0.5)], abs=1e-12)
    own = run("sapo", tokens, sapo_temperature_pos=0.5, sapo_temperature_neg=0.75).losses[:, 0].tolist()
    assert own == pytest.approx([expected(0.5, 0.5), expected(0.75, -0.5)], abs=1e-12)


@pytest.mark.parametrize(("good", "bad"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_sapo_needs_temperatures_above_0(good, bad):
    message = rf"sapo_temperature_pos={good} and sapo_temperature_neg={bad} must be above 0"
    with pytest.raises(ValueError, match=message):
        run("sapo", make_tokens([[2.0]], [[0.5]]), sapo_temperature_pos=good, sapo_temperature_neg=bad)


def test_gmpo_by_hand():
    """Log-ratios of exactly the bounds and beyond them: clipped from above where A > 0, from below where A < 0."""
    log_ratio = torch.tensor([[0.5, 0.2, 0.1, 9.0]] * 3, dtype=torch.float64)
    tokens = PolicyTokens(
        logps=torch.cat([log_ratio, -log_ratio]),
        old_logps=torch.zeros(6, 4, dtype=torch.float64),
        advantages=torch.tensor([[0.5], [-0.5], [0.0]] * 2, dtype=torch.float64),
        mask=torch.tensor([[True, True, True, False]] * 6),
    )
    found = run("gmpo", tokens)
    cut, whole = math.exp(0.5 / 3), math.exp(0.8 / 3)  # 0.2 + 0.2 + 0.1 and 0.5 + 0.2 + 0.1
    expected = [-0.5 * cut, 0.5 * whole, 0.0, -0.5 / whole, 0.5 / cut, 0.0]
    assert found.losses.expand(6, 4)[:, 0].tolist() == pytest.approx(expected, abs=1e-12)
    high, low = found.metrics["clip_ratio/high_mean"], found.metrics["clip_ratio/low_mean"]
    assert high[:, :3].tolist() == [[1.0, 0.0, 0.0]] + [[0.0] * 3] * 5
    assert low[:, :3].tolist() == [[0.0] * 3] * 4 + [[1.0, 0.0, 0.0]] + [[0.0] * 3]
    wider = run("gmpo", tokens, epsilon_high=0.4).losses.expand(6, 4)[:, 0].tolist()
    assert wider[0] == pytest.approx(-0.5 * math.exp(0.7 / 3), abs=1e-12)
    assert wider[1:] == pytest.approx(expected[1:], abs=1e-12)


def phi(w: float, k: float, rate: float) -> float:
    """VESPO's weight."""
    return w**k * math.exp(rate * (1 - w))


def test_vespo_by_hand():
    """Ratios 2 and 1/4 have the product ½; each token has the weight of that, times A, times its own log-prob.

    A good answer has k = 2 and lambda = 3, a bad one 3 and 2, one of advantage 0 is good (and has no loss).
    """
    tokens = make_tokens([[2.0, 0.25]] * 3, [[0.5], [-0.5], [0.0]])
    found = run("vespo", tokens)
    good, bad = phi(0.5, 2, 3), phi(0.5, 3, 2)
    assert found.metrics["vespo/phi_seq_mean"].flatten().tolist() == pytest.approx([good, bad, good], abs=1e-12)
    expected = [
        [-good * 0.5 * math.log(2), good * 0.5 * math.log(4)],
        [bad * 0.5 * math.log(2), -bad * 0.5 * math.log(4)],
    ]
    torch.testing.assert_close(found.losses[:2], torch.tensor(expected, dtype=torch.float64))
    own = run("vespo", tokens, vespo_k_pos=1.1, vespo_lambda_pos=0.6, vespo_k_neg=0.7, vespo_lambda_neg=0.3)
    of_own = own.metrics["vespo/phi_seq_mean"].flatten().tolist()
    assert of_own == pytest.approx([phi(0.5, 1.1, 0.6), phi(0.5, 0.7, 0.3), phi(0.5, 1.1, 0.6)], abs=1e-12)


def test_vespo_reads_the_weights_of_the_sampler():
    """Weights 3 and 2 of trained tokens make ½ to 3; that of an untrained token counts for nothing."""
    tokens = make_tokens([[2.0, 0.25, 1.0]], [[1.0]], mask=[[1, 1, 0]])
    weighted = replace(tokens, importance_weights=torch.tensor([[3.0, 2.0, 7.0]], dtype=torch.float64))
    assert run("vespo", weighted).metrics["vespo/phi_seq_mean"].item() == pytest.approx(phi(3.0, 2, 3), abs=1e-12)


def test_vespo_bounds_every_logarithm():
    """log_ratio of a token stays in ±20, log c and log w in [log 1e-8, 20]: what lies beyond has the bound's weight.

    k = 1 and the smallest lambda, 1e-4, for good answers: log phi is lambda + log w - lambda w.
    """
    options = {"vespo_k_pos": 1.0, "vespo_lambda_pos": 0.0}
    lowest = math.log(1e-8)

    def log_phi(log_ratio, log_weights=None):
        tokens = make_tokens([[1.0] * len(log_ratio)], [[1.0]])
        tokens = replace(tokens, logps=torch.tensor([log_ratio], dtype=torch.float64))
        if log_weights is not None:
            tokens = replace(tokens, importance_weights=torch.tensor([log_weights], dtype=torch.float64).exp())
        return run("vespo", tokens, **options).metrics["vespo/phi_seq_mean"].log().item()

    def of(log_w):
        return 1e-4 + log_w - 1e-4 * math.exp(log_w)

    assert log_phi([30.0, -15.0]) == pytest.approx(of(5.0), abs=1e-9)
    assert log_phi([-30.0, 15.0]) == pytest.approx(of(-5.0), abs=1e-9)
    assert log_phi([-15.0, -15.0]) == pytest.approx(of(lowest), abs=1e-9)
    assert log_phi([0.0, 15.0], [-40.0, 0.0]) == pytest.approx(of(15.0 + lowest), abs=1e-9)
    assert log_phi([0.0, -15.0], [30.0, 0.0]) == pytest.approx(of(5.0), abs=1e-9)


def test_vespo_of_half_precision_is_float32():
    tokens = random_tokens(dtype=torch.bfloat16)
    assert run("vespo", tokens).metrics["vespo/phi_seq_mean"].dtype == torch.float32
