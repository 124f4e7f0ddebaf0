"""The losses of a reward trainer: names, weights and options -> closed functions of scores, checked before a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from burnish.losses import reward_losses
from burnish.losses.reward import centering
from burnish.registry import Entry
from burnish.types import PAIR_UNITS, PairScores, Term

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.trainers.reward import RewardConfig


@dataclass(frozen=True)
class ScoreLosses:
    """Bound rows of the table of reward losses, with their weights, and what holds scores near 0.

    Attributes:
        entries: the losses.
        weights: the factor of each in the sum.
        center: the factor of `centering`, or None.
    """

    entries: tuple[Entry[Any, Tensor], ...]
    weights: tuple[float, ...]
    center: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        """What the rows must carry for them."""
        return frozenset[str]().union(*(entry.facts["needs"] for entry in self.entries))

    def terms(self, scores: PairScores) -> tuple[Term, ...]:
        """One term for each loss, unreduced, and that of centering."""
        parts = [
            Term(name=entry.name, losses=entry.function(scores), per=entry.facts["per"], coefficient=coefficient)
            for entry, coefficient in zip(self.entries, self.weights, strict=True)
        ]
        return (*parts, *centering(scores, coefficient=self.center))

    def describe(self) -> list[dict[str, Any]]:
        """Name, paper and weight of each, for the manifest."""
        rows = [
            {"name": entry.name, "paper": entry.paper, "weight": weight}
            for entry, weight in zip(self.entries, self.weights, strict=True)
        ]
        centered = {"name": "center_rewards", "paper": "2312.09244", "weight": self.center}
        return rows if self.center is None else [*rows, centered]


def bind_losses(config: RewardConfig) -> ScoreLosses:
    """The losses that a configuration names, each called once on two made-up pairs.

    Raises:
        ValueError: an unknown loss, an option that none of them reads, or a loss whose result has not one number for
            each of its units.
    """
    entries = reward_losses.bind(config.loss_type, config, config.loss_kwargs)
    for entry in entries:
        _check(entry)
    weights = tuple(config.loss_weights or [1.0] * len(entries))
    return ScoreLosses(tuple(entries), weights, config.center_rewards_coefficient)


def _check(entry: Entry[Any, Tensor]) -> None:
    """Call a loss on two pairs, so that a wrong option or result is found before a model is loaded."""
    pairs = torch.tensor([[0, 1], [2, 3]])
    scores = PairScores(scores=torch.arange(4.0), pairs=pairs, margin=torch.ones(2), targets=torch.ones(4))
    result, per = entry.function(scores), entry.facts["per"]
    wanted = (2,) if per in PAIR_UNITS else (4,)
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if shape != wanted:
        raise ValueError(
            f"the loss {entry.name!r} is per {per} and returned {shape} for two pairs of four rows: return a tensor "
            f"{wanted}, one loss for each {per}, not a sum or a mean"
        )
