from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from burnish.runtime.guard import MAX_NAMED, DivergedError, StepGuard, poison


def make_linear() -> nn.Linear:
    """A layer with gradients of 1."""
    model = nn.Linear(2, 1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def has_gradients(model: nn.Module) -> bool:
    return any(parameter.grad is not None for parameter in model.parameters())


def test_poison_leaves_a_finite_loss_alone():
    """Bit for bit, in value and gradient."""
    x = torch.tensor([0.1, 1e30, -3.0], requires_grad=True)
    loss = (x * 0.7).sum()
    assert torch.equal(poison(loss), loss)
    assert torch.equal(torch.autograd.grad(poison(loss), x)[0], torch.full((3,), 0.7))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_poison_turns_every_gradient_into_nan(bad):
    """Also that of an infinite constant, whose own gradient would look sound."""
    x = torch.ones(2, requires_grad=True)
    loss = (x * 2).sum() + bad
    assert torch.autograd.grad(loss, x, retain_graph=True)[0].isfinite().all()
    assert torch.autograd.grad(poison(loss), x)[0].isnan().all()


def test_a_sound_step_passes():
    guard, model = StepGuard(), make_linear()
    guard.watch(torch.tensor([1, 2]), torch.tensor([0.5, 0.6]))
    assert guard.check(model, 3.0, step=0) is None
    assert has_gradients(model)
    assert (guard.num_skipped.value, guard.in_a_row) == (0, 0)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_bad_step_drops_its_gradients_and_names_its_rows(norm):
    guard, model = StepGuard(), make_linear()
    model.weight.grad[0, 1] = math.nan
    guard.watch(torch.tensor([7, 3, 9]), torch.tensor([math.inf, 0.5, math.nan]))
    guard.watch(torch.tensor([4]), torch.tensor([0.1]))
    event = guard.check(model, norm, step=12)
    assert not has_gradients(model)
    assert event["rows"] == [7, 9]
    assert event["all_rows"] == [3, 4, 7, 9]
    assert event["losses"] == ["inf", "nan"]
    assert event["parameters"] == ["weight"]
    assert event["grad_norm"] == str(norm)
    assert guard.num_skipped.value == 1


def test_an_optimizer_with_momentum_does_not_move_on_a_skipped_step():
    model = make_linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    optimizer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model.weight.grad.fill_(math.nan)
    assert StepGuard().check(model, math.nan, step=1) is not None
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_rows_of_an_earlier_step_are_forgotten():
    guard, model = StepGuard(), make_linear()
    guard.watch(torch.tensor([1]), torch.tensor([math.nan]))
    guard.check(model, 1.0, step=0)
    guard.watch(torch.tensor([2]), torch.tensor([math.nan]))
    assert guard.check(model, math.nan, step=1)["rows"] == [2]


def test_many_rows_are_named_up_to_a_limit():
    guard = StepGuard()
    guard.watch(torch.arange(1000), torch.full((1000,), math.nan))
    event = guard.check(make_linear(), math.nan, step=0)
    assert event["rows"] == list(range(MAX_NAMED))


def test_a_row_with_two_bad_losses_is_named_once():
    guard = StepGuard()
    guard.watch(torch.tensor([5, 5]), torch.tensor([math.nan, math.inf]))
    assert guard.check(make_linear(), math.nan, step=0)["rows"] == [5]


def test_too_many_in_a_row_end_the_run():
    guard = StepGuard(max_skipped=3)
    for step in range(2):
        guard.watch(torch.tensor([step]), torch.tensor([math.nan]))
        guard.check(make_linear(), math.nan, step=step)
    guard.watch(torch.tensor([8]), torch.tensor([math.nan]))
    with pytest.raises(DivergedError, match=r"step 3: .* in 3 steps in a row \(rows \[8\]") as raised:
        guard.check(make_linear(), math.nan, step=2)
    assert len(str(raised.value).splitlines()) <= 12
    assert "Lower the learning rate" in str(raised.value)


def test_a_sound_step_between_starts_the_count_again():
    guard = StepGuard(max_skipped=2)
    for step in range(4):
        guard.check(make_linear(), math.nan if step % 2 else 1.0, step=step)
    assert (guard.in_a_row, guard.num_skipped.value) == (1, 2)


def test_state():
    guard, resumed = StepGuard(max_skipped=3), StepGuard(max_skipped=3)
    guard.check(make_linear(), math.nan, step=0)
    guard.check(make_linear(), math.inf, step=1)
    resumed.load_state_dict(guard.state_dict())
    assert (resumed.in_a_row, resumed.num_skipped.value) == (2, 2)
    with pytest.raises(DivergedError):
        resumed.check(make_linear(), math.nan, step=2)
