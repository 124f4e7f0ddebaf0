from __future__ import annotations

import pytest
import torch

from burnish.losses.value import value_loss


def test_values_and_gradients():
    """V_old = 1, c = 0.5. Towards R = 4 from V = 2: max(4, 6.25) / 2, clipped, no gradient: it has moved enough.
    Away from R = 0 to V = 2: max(4, 2.25) / 2 with the gradient 2. Inside, V = 1.25 and R = 2: 0.5625 / 2, -0.75.
    """
    values = torch.tensor([[2.0, 2.0, 1.25]], requires_grad=True)
    result = value_loss(values, torch.ones(1, 3), torch.tensor([[4.0, 0.0, 2.0]]), cliprange_value=0.5)
    result.losses.sum().backward()
    assert result.losses.tolist() == [[3.125, 2.0, 0.28125]]
    assert values.grad.tolist() == [[0.0, 2.0, -0.75]]
    assert result.metrics["val/clipfrac_avg"].tolist() == [[1.0, 0.0, 0.0]]


def test_without_a_clip():
    result = value_loss(torch.tensor([[3.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), cliprange_value=None)
    assert (result.losses.tolist(), dict(result.metrics)) == ([[2.0]], {})


def test_an_estimate_may_move_by_a_fifth_unless_told():
    """From 1 to 3, the return: without error, but only 1.2 counts; and the same downwards."""
    result = value_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]]))
    assert result.losses[0].tolist() == pytest.approx([1.8**2 / 2] * 2)


@pytest.mark.parametrize("cliprange_value", [None, 0.3])
def test_gradcheck(cliprange_value):
    values, old_values, returns = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0)).double()

    def loss(values):
        return value_loss(values, old_values, returns, cliprange_value=cliprange_value).losses

    assert torch.autograd.gradcheck(loss, (values.requires_grad_(),))


def test_half_precision_is_float32():
    values = torch.ones(1, 1, dtype=torch.bfloat16)
    assert value_loss(values, values, values).losses.dtype == torch.float32
