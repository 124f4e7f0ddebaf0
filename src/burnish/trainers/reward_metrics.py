"""What a reward trainer logs about a micro-batch, as means that can still be added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from burnish.metrics import RELIABILITY_BINS
from burnish.types import Mean, PairScores, PreferenceBatch

if TYPE_CHECKING:
    from torch import Tensor


def reward_metrics(scores: PairScores, batch: PreferenceBatch, *, sources: Sequence[str]) -> dict[str, Mean]:
    """Scores, accuracy, margin, calibration, and what length has to do with them; per source where there are several.

    `min_reward` and `max_reward` are of the micro-batch, so their means depend on its size, as in TRL.
    """
    rows, weight = batch.unit_weights("row"), batch.unit_weights("pair")  # (N,), (M,)
    said, difference = scores.scores.detach(), scores.difference.detach()
    length = batch.loss_mask.sum(1).to(said.dtype)  # (N,) tokens of the answer itself
    counts, any_counts = rows != 0, (rows != 0).any()
    longer = length[scores.pairs[:, 0]] - length[scores.pairs[:, 1]]  # (M,)
    right = (difference > 0) + 0.5 * (difference == 0)  # (M,)

    def over_pairs(values: Tensor, where: Tensor | None = None) -> Mean:
        return Mean.of(values, weight=weight if where is None else weight * where)

    metrics = {
        "accuracy": over_pairs(right),
        "accuracy_chosen_shorter": over_pairs(right, longer < 0),
        "margin": over_pairs(difference),
        "min_reward": Mean.of(torch.where(counts, said, torch.inf).min(), weight=any_counts),
        "mean_reward": Mean.of(said, weight=rows),
        "max_reward": Mean.of(torch.where(counts, said, -torch.inf).max(), weight=any_counts),
        "length_difference": over_pairs(longer),
        "_length": Mean.of(length, weight=rows),
        "_length_x_reward": Mean.of(length * said, weight=rows),
        **_reliability(difference, right, weight),
    }
    if "truncated" in batch.columns:
        metrics["truncated"] = Mean.of(batch.columns["truncated"], weight=rows)
    if len(sources) > 1 and "source" in batch.columns:
        source = batch.columns["source"][scores.pairs[:, 0]]  # (M,)
        for index, name in enumerate(sources):
            metrics[f"accuracy/{name}"] = over_pairs(right, source == index)
            metrics[f"margin/{name}"] = over_pairs(difference, source == index)
    return metrics


def _reliability(difference: Tensor, right: Tensor, weight: Tensor) -> dict[str, Mean]:
    """How often the model is right among pairs that it is equally sure of: σ(|s_w - s_l|), between ½ and 1."""
    confidence = torch.sigmoid(difference.abs())  # (M,)
    size = 0.5 / len(RELIABILITY_BINS)
    place = ((confidence - 0.5) / size).long().clamp(max=len(RELIABILITY_BINS) - 1)  # (M,)
    bins: dict[str, Mean] = {}
    for index, name in enumerate(RELIABILITY_BINS):
        inside = weight * (place == index)
        bins[f"reliability/{name}"] = Mean.of(right, weight=inside)
        bins[f"_confidence/{name}"] = Mean.of(confidence, weight=inside)
    return bins
