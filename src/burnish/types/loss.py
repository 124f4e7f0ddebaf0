"""What a loss returns: terms that are divided once, and means that can still be added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.types.batch import wide

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
    """A weighted mean that can still be added up: over micro-batches, steps and ranks.

    Attributes:
        total: () sum of weight x value.
        weight: () sum of weights.
        squares: () sum of weight x value², from which the standard error comes.

    All are detached and stay on the device. Example: Mean.of([True, False, True]) has total 2, weight 3.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    squares: Float[Tensor, ""]

    @classmethod
    def of(cls, values: Tensor, *, weight: Tensor | None = None) -> Mean:
        """Mean of `values` (any shape), weighted by `weight` (same shape); values of weight 0 are never read."""
        numbers = wide(values.detach())
        if weight is None:
            weights = torch.ones_like(numbers)
        else:
            weights = weight.detach().to(numbers.dtype).expand_as(numbers)
            numbers = torch.where(weights != 0, numbers, torch.zeros_like(numbers))
        weighted = numbers * weights
        return cls(total=weighted.sum(), weight=weights.sum(), squares=(weighted * numbers).sum())

    def to(self, device: torch.device | str) -> Mean:
        """The same mean on `device`."""
        return Mean(total=self.total.to(device), weight=self.weight.to(device), squares=self.squares.to(device))

    def without_weight(self) -> Mean:
        """A mean of nothing: it keeps its name in step with the other ranks, and changes no sum."""
        return Mean(
            total=torch.zeros_like(self.total),
            weight=torch.zeros_like(self.weight),
            squares=torch.zeros_like(self.squares),
        )

    def __add__(self, other: Mean) -> Mean:
        return Mean(
            total=self.total + other.total,
            weight=self.weight + other.weight,
            squares=self.squares + other.squares,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Term:
    """One part of a loss: unreduced, with the unit it is averaged over.

    Attributes:
        name: what it is called in the metrics, `loss/<name>`.
        losses: the loss of each unit, with gradient; (M,) per pair or chosen_token, (N,) per row, (N, T) per token.
        per: the unit. The trainer weights, sums and divides once, by the unit's count in the whole step.
        coefficient: the term's factor in the loss.

    Example: Term(name="sft", losses=-logps_of_chosen, per="chosen_token", coefficient=0.5).
    """

    name: str
    losses: Tensor
    per: str
    coefficient: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutput:
    """What a trainer's `loss` returns: terms with gradient and metrics without."""

    terms: tuple[Term, ...]
    metrics: Mapping[str, Mean] = field(default_factory=dict[str, Mean])

    @classmethod
    def of(
        cls, losses: Tensor, *, per: str, name: str = "loss", metrics: Mapping[str, Mean] | None = None
    ) -> LossOutput:
        """A loss of one term. `losses` is unreduced: (M,) per pair, (N,) per row, (N, T) per token."""
        return cls(terms=(Term(name=name, losses=losses, per=per),), metrics=metrics or {})
