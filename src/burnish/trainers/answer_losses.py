"""The loss of a trainer that learns from single answers: a name or a function -> a closed function, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.registry import Entry, Table
    from burnish.trainers.config import PolicyConfig


def bind_loss(
    table: Table[..., Tensor], options: PolicyConfig, operand: Any, *, shape: tuple[int, ...]
) -> Entry[Any, Tensor]:
    """The loss that a configuration names in `loss_type`, called once on a made-up operand.

    Args:
        table: its rows.
        options: with `loss_type` and `loss_kwargs`.
        operand: what the loss takes.
        shape: of its result.

    Raises:
        ValueError: an unknown loss, an option that it does not read, or a result of another shape.
    """
    given = vars(options)
    (entry,) = table.bind([given["loss_type"]], options, given["loss_kwargs"])
    result = entry.function(operand)
    found = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if found != shape:
        raise ValueError(
            f"the loss {entry.name!r} returned {found} where {shape} was asked for: return a tensor, one loss for each "
            f"{entry.facts['per']}, not a sum or a mean"
        )
    return entry


def describe_loss(entry: Entry[Any, Tensor]) -> list[dict[str, Any]]:
    """Name, paper and weight, for the manifest."""
    return [{"name": entry.name, "paper": entry.paper, "weight": 1.0}]
