"""Aggregations: the losses of tokens -> the losses of the units that the trainer averages over.

Nothing is divided by the size of a batch here: the trainer divides once, by the count of the unit in the whole
optimizer step. The fact `per` is that unit, `token` or `row`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.registry import Table

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

aggregations: Table[..., Tensor] = Table("aggregation", per="row")
aggregation = aggregations.register


def reduce_tokens(
    losses: Float[Tensor, "N T1"],
    mask: Bool[Tensor, "N T"],
    *,
    aggregation: str,
    max_completion_length: int | None = None,
) -> tuple[Tensor, str]:
    """The losses of a `Term`, and the unit that they are averaged over.

    Args:
        losses: (N, T), or (N, 1) for one number that every token of the answer has.
        mask: (N, T) the trained tokens; what lies outside is never read.
        aggregation: a name of the table.
        max_completion_length: the constant of `token_sum_norm`; the others do not read it.

    Returns:
        (N, T) and "token", or (N,) and "row". A row without a trained token has 0.

    >>> import torch
    >>> losses, mask = torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    >>> reduce_tokens(losses, mask, aggregation="seq_mean_token_mean")
    (tensor([2., 5.]), 'row')
    """
    entry = aggregations[aggregation]
    kept = torch.where(mask, losses, torch.zeros_like(losses))  # (N, T)
    return entry.function(kept, mask, max_completion_length), entry.facts["per"]


@aggregation("token_mean", per="token", paper="2503.14476")
def token_mean(
    losses: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], max_completion_length: int | None
) -> Float[Tensor, "N T"]:
    """The mean over all trained tokens of the step: an answer weighs as much as it has tokens.

    Source: DAPO (2503.14476) eq. 8.
    """
    del mask, max_completion_length
    return losses


@aggregation("seq_mean_token_mean", paper="2402.03300")
def seq_mean_token_mean(
    losses: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], max_completion_length: int | None
) -> Float[Tensor, "N"]:
    """The mean over answers of the mean over their tokens: a token of a long answer weighs less.

    Source: GRPO (2402.03300) eq. 3.
    """
    del max_completion_length
    return losses.sum(1) / mask.sum(1).clamp(min=1)


@aggregation("seq_mean_token_sum", paper="2402.14740")
def seq_mean_token_sum(
    losses: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], max_completion_length: int | None
) -> Float[Tensor, "N"]:
    """The mean over answers of the sum over their tokens: the whole answer is one action.

    Source: REINFORCE for language models (2402.14740).
    """
    del mask, max_completion_length
    return losses.sum(1)


@aggregation("token_sum_norm", paper="2503.20783")
def token_sum_norm(
    losses: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], max_completion_length: int | None
) -> Float[Tensor, "N"]:
    """The mean over answers of the sum over their tokens, divided by a constant: no token weighs less in a long answer.

    Raises:
        ValueError: `max_completion_length` is not given.

    Source: Dr. GRPO (2503.20783).
    """
    del mask
    if not max_completion_length:
        raise ValueError(
            f"max_completion_length={max_completion_length!r}: the aggregation token_sum_norm divides by it; "
            "set it to the longest answer that may be sampled"
        )
    return losses.sum(1) / max_completion_length
