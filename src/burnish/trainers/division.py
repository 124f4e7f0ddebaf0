"""The one division: terms -> the number whose gradient is taken.

    loss = sum over terms of coefficient x (sum of weight x loss) / (summed weight of the unit in the whole step)

The numerator is this micro-batch's, the denominator the optimizer step's over all ranks, so accumulation, padding,
micro-batch size and world size cannot change a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.runtime.distributed import sum_over_ranks
from burnish.types import PAIR_UNITS, Mean, PreferenceBatch, Term, TokenBatch, wide

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def step_counts(
    parcels: Sequence[TokenBatch], device: torch.device | str, *, also: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The count () of every unit in the whole step over all ranks, and `input_token`. One collective.

    Args:
        parcels: this rank's.
        device: where the sums are wanted.
        also: other vectors that are summed over the ranks on the same trip, by name.
    """
    local = [{**parcel.counts(), "input_token": _input_tokens(parcel)} for parcel in parcels]
    own = {name: torch.stack([wide(counts[name]) for counts in local]).sum() for name in sorted(local[0])}
    vectors = [*own.values(), *(also or {}).values()]
    flat = torch.cat([wide(vector).to(device).flatten() for vector in vectors])
    parts = sum_over_ranks(flat).split([vector.numel() for vector in vectors])
    shaped = [part.view(vector.shape) for part, vector in zip(parts, vectors, strict=True)]
    return dict(zip([*own, *(also or {})], shaped, strict=True))


def weighted_sum(term: Term, batch: TokenBatch) -> Float[Tensor, ""]:
    """Sum of weight x loss over the units of one micro-batch; what has weight 0 is never read.

    Raises:
        ValueError: the losses do not have the shape of their unit.
    """
    weights = batch.unit_weights(term.per)
    if weights.shape != term.losses.shape:
        raise ValueError(
            f"term {term.name!r} is per {term.per}, so its losses must have shape {tuple(weights.shape)}, "
            f"got {tuple(term.losses.shape)}. Return one loss for each {term.per}, not a sum or a mean."
        )
    if batch.is_filler:
        return (torch.nan_to_num(term.losses) * 0).sum()
    return (torch.where(weights != 0, term.losses, 0) * weights).sum()


def divide(terms: Sequence[Term], batch: TokenBatch, counts: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """This micro-batch's share of the step's loss."""
    shares = [term.coefficient * weighted_sum(term, batch) / counts[term.per].clamp(min=1e-12) for term in terms]
    return torch.stack(shares).sum()


def term_means(terms: Sequence[Term], batch: TokenBatch) -> dict[str, Mean]:
    """`loss/<name>` of each term as a mean over its own unit."""
    counts = batch.counts()
    means: dict[str, Mean] = {}
    for term in terms:
        mean = Mean.of(term.losses, weight=batch.unit_weights(term.per))
        if term.per in ("chosen_token", "prompt"):  # a loss that is a sum over more: its weight is their number
            mean = Mean(total=mean.total, weight=counts[term.per], squares=torch.full_like(mean.total, torch.nan))
        means[f"loss/{term.name}"] = mean
    return means


def counted(metrics: Mapping[str, Mean], batch: TokenBatch) -> Mapping[str, Mean]:
    """The metrics of a micro-batch; those of a filler without their weight, so that every rank has every name."""
    return {name: mean.without_weight() for name, mean in metrics.items()} if batch.is_filler else metrics


def unit_rows(term: Term, batch: TokenBatch) -> tuple[Int[Tensor, "K"], Float[Tensor, "K"]]:
    """The row of the data set and the loss of each unit, for the guard."""
    if isinstance(batch, PreferenceBatch) and term.per in PAIR_UNITS:
        return batch.row_id[batch.pairs[:, 0]], term.losses
    rows = batch.unit_rows(term.per)
    if term.per == "row":
        return rows, term.losses
    mask = batch.unit_weights(term.per) != 0
    return rows[:, None].expand_as(mask)[mask], term.losses[mask]


def _input_tokens(parcel: TokenBatch) -> Tensor:
    return parcel.num_input_tokens * (0 if parcel.is_filler else 1)
