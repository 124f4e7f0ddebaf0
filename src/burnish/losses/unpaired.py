"""Unpaired losses: answers that were each judged by itself -> the loss of each, lower is better.

Facts of a row, which the rooms ask for instead of its name:
- `needs`: `kl`, the reference point of the step, which costs a pass without gradient over answers to other prompts.
Notation: r = log π - log ref of an answer, b = beta, w = desirable_weight or undesirable_weight, σ = sigmoid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.registry import Table

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.types import JudgedLogps

unpaired_losses: Table[..., Tensor] = Table("single-answer loss", per="row", needs=frozenset[str]())
unpaired_loss = unpaired_losses.register


@unpaired_loss("kto", needs=frozenset({"kl"}), paper="2402.01306")
def kto(
    judged: JudgedLogps, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Float[Tensor, "N"]:
    """Kahneman-Tversky: a desirable answer is to gain on the reference point z, an undesirable one to lose.

    loss = w (1 - σ(b (r - z)))   for a desirable answer,   w (1 - σ(b (z - r)))   for an undesirable one
    z    = max(0, mean of r over answers to other prompts)

    z is an estimate of KL(π || ref), in nats, over the whole optimizer step on all ranks, and has no gradient.

    Source: KTO (2402.01306) eq. 7 and 8.
    """
    return _losses(judged, judged.required_kl, beta, desirable_weight, undesirable_weight)


@unpaired_loss("apo_zero_unpaired", paper="2408.06266")
def apo_zero_unpaired(
    judged: JudgedLogps, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Float[Tensor, "N"]:
    """Anchored preferences without pairs: desirable answers become likelier than before, undesirable ones less likely.

    loss = w (1 - σ(b r))   for a desirable answer,   w σ(b r)   for an undesirable one

    It is `kto` with z = 0. For answers that are better than the model's own.

    Source: APO (2408.06266) eq. 7, each half by itself.
    """
    return _losses(judged, torch.zeros_like(judged.logps), beta, desirable_weight, undesirable_weight)


def _losses(
    judged: JudgedLogps, point: Float[Tensor, "N"], beta: float, desirable: float, undesirable: float
) -> Float[Tensor, "N"]:
    """What an answer lacks of its full gain over a point, or loss under it, weighted."""
    gain = beta * (judged.logratio - point)
    missing = torch.where(judged.is_desirable, -gain, gain)
    weight = torch.where(judged.is_desirable, gain.new_tensor(desirable), gain.new_tensor(undesirable))
    return weight * torch.sigmoid(missing)
