"""Losses of single answers, with numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from burnish.losses import supervised_losses
from burnish.losses.supervised import dft, nll
from burnish.losses.unpaired import apo_zero_unpaired, kto
from burnish.types import JudgedLogps

SIGMOID_1 = 1 / (1 + math.exp(-1))


def judged(**changes) -> JudgedLogps:
    """Two answers whose log-ratio is 3, one desirable; z = 1."""
    return JudgedLogps(
        logps=torch.tensor([-10.0, -20.0], dtype=torch.float64),
        ref_logps=torch.tensor([-13.0, -23.0], dtype=torch.float64),
        is_desirable=torch.tensor([True, False]),
        kl=torch.tensor([1.0, 1.0], dtype=torch.float64),
        **changes,
    )


def test_kto_by_hand():
    """b (r - z) = 0.5 (3 - 1) = 1: 1 - σ(1) for the desirable answer, σ(1) for the other one; weights multiply."""
    found = kto(judged(), beta=0.5).tolist()
    assert found == pytest.approx([1 - SIGMOID_1, SIGMOID_1], abs=1e-12)
    weighted = kto(judged(), beta=0.5, desirable_weight=2.0, undesirable_weight=0.5).tolist()
    assert weighted == pytest.approx([2 * (1 - SIGMOID_1), SIGMOID_1 / 2], abs=1e-12)


def test_apo_zero_unpaired_is_kto_around_zero():
    """b r = 1 with b = 1/3."""
    found = apo_zero_unpaired(judged(), beta=1 / 3)
    assert found.tolist() == pytest.approx([1 - SIGMOID_1, SIGMOID_1], abs=1e-12)
    around = replace(judged(), kl=torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(found, kto(around, beta=1 / 3))


def test_a_missing_reference_point_is_named():
    with pytest.raises(ValueError, match=r"needs=.*kl"):
        kto(replace(judged(), kl=None), beta=0.1)


def test_supervised_losses_by_hand():
    """p = 0.5 and 0.25: nll log 2 and 2 log 2; dft half and a quarter of these."""
    logps = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    two = math.log(2)
    assert nll(logps).tolist() == [pytest.approx([two, 2 * two], abs=1e-12)]
    assert dft(logps).tolist() == [pytest.approx([two / 2, two / 2], abs=1e-12)]


def test_gradient_of_dft_is_that_of_nll_times_the_probability():
    logps = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log().requires_grad_()
    (gradient,) = torch.autograd.grad(dft(logps).sum(), logps)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, -0.25]], dtype=torch.float64))
    assert {supervised_losses[name].facts["per"] for name in supervised_losses} == {"token"}
