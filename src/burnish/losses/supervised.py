"""Supervised losses: the log-probs of answers to imitate -> the loss of each token, lower is better.

Notation: p = the policy's probability of a token that is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.registry import Table

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

supervised_losses: Table[..., Tensor] = Table("supervised loss", per="token", needs=frozenset[str]())
supervised_loss = supervised_losses.register


@supervised_loss("nll")
def nll(logps: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Maximum likelihood: the cross-entropy of the next token, in nats.

    loss = -log p

    >>> import torch
    >>> nll(torch.tensor([[0.5]]).log()).item()
    0.6931471824645996
    """
    return -logps


@supervised_loss("dft", paper="2508.05629")
def dft(logps: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Dynamic fine-tuning: the same gradient times p, so that tokens that the policy finds unlikely do not dominate.

    loss = -stop(p) log p

    Source: Wu et al. (2508.05629) eq. 9.

    >>> import torch
    >>> dft(torch.tensor([[0.5]]).log()).item()
    0.3465735912322998
    """
    return -logps.detach().exp() * logps
