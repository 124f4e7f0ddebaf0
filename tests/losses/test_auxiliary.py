from __future__ import annotations

import torch

from burnish.losses.auxiliary import entropy_bonus


def test_entropy_bonus():
    """-0.5 H a token; a step down its gradient raises the entropy."""
    entropy = torch.tensor([[1.0, 3.0]], requires_grad=True)
    term = entropy_bonus(entropy, coefficient=0.5)
    (gradient,) = torch.autograd.grad((term.coefficient * term.losses).sum(), entropy)
    assert (term.name, term.per, term.losses.tolist()) == ("entropy", "token", [[-1.0, -3.0]])
    assert gradient.tolist() == [[-0.5, -0.5]]


def test_entropy_bonus_of_chosen_tokens():
    entropy = torch.tensor([[1.0, torch.inf]])
    assert entropy_bonus(entropy, coefficient=1.0, keep=torch.tensor([[True, False]])).losses.tolist() == [[-1.0, 0.0]]
