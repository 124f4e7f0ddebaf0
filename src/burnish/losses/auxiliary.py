"""Terms beside a method's own loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.types import Term

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from burnish.types import TokenStats


def load_balancing(stats: TokenStats, *, coefficient: float) -> tuple[Term, ...]:
    """The load-balancing loss of a mixture of experts, weighted by the micro-batch's trained tokens; else nothing.

    loss = coefficient x mean over micro-batches of aux_loss

    It is the one loss that is no sum over units: a mean over micro-batches depends on how the step is split.

    Source: Switch Transformers (2101.03961) eq. 4.
    """
    if stats.aux_loss is None:
        return ()
    losses = stats.aux_loss.expand(stats.logps.shape)  # (N, T): each token carries the micro-batch's value
    return (Term(name="aux_loss", losses=losses, per="token", coefficient=coefficient),)


def entropy_bonus(
    entropy: Float[Tensor, "N T"], *, coefficient: float, keep: Bool[Tensor, "N T"] | None = None
) -> Term:
    """A reward for staying undecided: minus the mean entropy of the trained tokens.

    loss = -coefficient x mean over tokens of H

    Args:
        entropy: nats, with gradient.
        coefficient: its weight; may be 0, so that the entropy is logged and the term keeps its place.
        keep: the tokens that the bonus acts on, those of the policy loss say; the mean is over all trained ones.

    Source: Williams & Peng (1991); for language models Skywork-OR1 (2505.22312).
    """
    losses = -entropy if keep is None else torch.where(keep, -entropy, torch.zeros_like(entropy))
    return Term(name="entropy", losses=losses, per="token", coefficient=coefficient)
