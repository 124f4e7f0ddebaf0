"""Terms beside a method's own loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from burnish.types import Term

if TYPE_CHECKING:
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
