"""The critic's loss: estimates of what an answer still earns -> (N, T), lower is better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.types import TokenLoss

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def value_loss(
    values: Float[Tensor, "N T"],
    old_values: Float[Tensor, "N T"],
    returns: Float[Tensor, "N T"],
    *,
    cliprange_value: float | None = 0.2,
) -> TokenLoss:
    """Half the squared error, and no gradient where the estimate has already moved far towards the return.

    loss = 1/2 max((V - R)², (clamp(V, V_old - c, V_old + c) - R)²),   c = cliprange_value; None: 1/2 (V - R)²

    Args:
        values: the critic's, with gradient.
        old_values: those of the rollout.
        returns: what it is trained towards.
        cliprange_value: how far one round may move an estimate.

    Returns:
        losses (N, T) per token, to be averaged over trained tokens; metric `val/clipfrac_avg` as a 0/1 tensor.

    Source: PPO's authors' code; Engstrom et al. (2005.12729), value function clipping.

    >>> import torch
    >>> value_loss(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.tensor([[2.0]]), cliprange_value=0.5).losses
    tensor([[0.5000]])
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    error = (values - returns) ** 2
    if cliprange_value is None:
        return TokenLoss(losses=error / 2)
    clipped = (torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value) - returns) ** 2
    metrics = {"val/clipfrac_avg": (clipped > error).to(values.dtype)}
    return TokenLoss(losses=torch.maximum(error, clipped) / 2, metrics=metrics)
