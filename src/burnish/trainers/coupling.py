"""Losses that couple rows: every pair of the optimizer step is scored first, then each parcel is trained on.

The step's pairs of all ranks are gathered without gradient; the loss and its derivatives by each pair's log-probs are
computed there once, and each parcel carries its part: value + derivative x (log-prob - its value) has both right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from burnish.runtime.distributed import gather_rows
from burnish.types import PairLogps, PreferenceBatch, wide

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

PAIR_COLUMNS = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_length", "rejected_length")

PairLoss = Callable[[PairLogps], "Tensor"]


def couple(
    parcels: Sequence[PreferenceBatch], pairs: Sequence[PairLogps], losses: Mapping[str, PairLoss]
) -> list[PreferenceBatch]:
    """The parcels of a step, each with its part of the step-wide `losses`.

    Args:
        parcels: this rank's.
        pairs: their log-probs, without gradient.
        losses: functions over the pairs of the whole step, by name.

    Raises:
        ValueError: weighted pairs.
    """
    own = [_columns(pair, batch) for pair, batch in zip(pairs, parcels, strict=True)]
    rows, start = gather_rows(torch.cat(own))  # (S, 6) pairs of the whole step
    parts = {name: _value_and_gradient(function, rows) for name, function in losses.items()}
    coupled: list[PreferenceBatch] = []
    for batch, mine in zip(parcels, own, strict=True):
        size = len(batch.pairs)
        part = {name: values.new_zeros(size, 3) for name, values in parts.items()}
        if len(mine):
            part = {name: values[start : start + size] for name, values in parts.items()}
            start += size
        coupled.append(replace(batch, coupled=part))
    return coupled


def coupled_losses(name: str, pair: PairLogps, batch: PreferenceBatch) -> Float[Tensor, "M"]:
    """The step-wide loss as seen from one parcel: its values, and its gradient with respect to the parcel's rows."""
    value, by_chosen, by_rejected = batch.coupled[name].to(pair.chosen.dtype).unbind(1)  # (M,) each
    return (
        value
        + by_chosen * (pair.chosen - pair.chosen.detach())
        + by_rejected * (pair.rejected - pair.rejected.detach())
    )


def _columns(pair: PairLogps, batch: PreferenceBatch) -> Float[Tensor, "M 6"]:
    if batch.weight is not None and not bool((batch.weight == 1).all()):
        raise ValueError(
            f"rows {batch.row_id.unique().tolist()}: a loss that couples rows cannot weight them: drop `weight`"
        )
    table = torch.stack([wide(getattr(pair, name)) for name in PAIR_COLUMNS], dim=1)
    return table[:0] if batch.is_filler else table


def _value_and_gradient(function: PairLoss, rows: Float[Tensor, "S 6"]) -> Float[Tensor, "S 3"]:
    """The loss at each position of the step, and the derivative of their sum by each pair's log-probs."""
    columns = dict(zip(PAIR_COLUMNS, rows.unbind(1), strict=True))
    chosen, rejected = (columns[name].detach().requires_grad_() for name in ("chosen", "rejected"))
    with torch.enable_grad():
        losses = function(PairLogps(**{**columns, "chosen": chosen, "rejected": rejected}))
        gradients = torch.autograd.grad(losses.sum(), (chosen, rejected))
    return torch.stack([losses.detach(), *gradients], dim=1)
