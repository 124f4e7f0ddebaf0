"""Which tokens and answers the policy loss reads: by entropy, and by how far the policy has left their sampler."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def entropy_threshold(entropies: Float[Tensor, "K"], *, top_entropy_quantile: float) -> Float[Tensor, ""]:
    """The entropy from which on a token belongs to the top share of a round.

    Args:
        entropies: (K,) of all trained tokens of the round, on all ranks.
        top_entropy_quantile: the share of tokens to keep, in (0, 1].

    Returns:
        () the smallest entropy that is kept; infinity if there is no token.

    Raises:
        ValueError: the share lies outside (0, 1].

    Source: "Beyond the 80/20 rule" (2506.01939).

    >>> import torch
    >>> entropy_threshold(torch.tensor([0.1, 3.0, 2.0, 0.2, 0.3]), top_entropy_quantile=0.4)
    tensor(2.)
    """
    if not 0 < top_entropy_quantile <= 1:
        raise ValueError(
            f"top_entropy_quantile={top_entropy_quantile!r} is the share of tokens to keep, in (0, 1]: 0.2 keeps "
            "the fifth with the highest entropy, 1 keeps all"
        )
    if not len(entropies):
        return torch.full((), math.inf, device=entropies.device)
    place = round((1 - top_entropy_quantile) * (len(entropies) - 1), 9)  # rounded: 1 - 0.7 is not 0.3
    return entropies.sort().values[math.ceil(place)]


def top_entropy_mask(
    entropy: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], threshold: Float[Tensor, ""]
) -> Bool[Tensor, "N T"]:
    """The trained tokens whose entropy reaches the threshold: what `RolloutBatch.policy_mask` holds."""
    return mask & (entropy >= threshold)


def off_policy_mask(
    advantages: Float[Tensor, "N T1"],
    logps: Float[Tensor, "N T"],
    sampler_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    off_policy_mask_threshold: float,
) -> Bool[Tensor, "N T1"]:
    """What is kept: all but bad answers that the policy has left far behind.

        dropped: A < 0 and the mean over trained tokens of sampler_logps - logps > off_policy_mask_threshold

    The mean is an estimate of KL(sampler || policy) in nats per token. Learning not to do what one no longer does
    teaches little, and from far away it is noise. Tokens whose sampler log-prob is NaN count as 0.

    Args:
        advantages: (N, 1), or (N, T), where it is decided token by token.
        logps: the policy's; no gradient is taken.
        sampler_logps: of the engine that drew the tokens, or of the old policy.
        mask: (N, T) the trained tokens.
        off_policy_mask_threshold: nats per token.

    Source: DeepSeek-V3.2 (2512.02556) section 3.1, off-policy sequence masking.
    """
    gap = torch.where(mask & ~sampler_logps.isnan(), sampler_logps - logps.detach(), 0.0)
    drift = gap.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)  # (N, 1)
    return (advantages >= 0) | (drift <= off_policy_mask_threshold)
