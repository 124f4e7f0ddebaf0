"""What a preference trainer logs about a micro-batch, as means that can still be added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from burnish.types import Mean, PairLogps, PreferenceBatch, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NEEDS = frozenset({"entropy", "top1", "mean_logit"})


def implicit_rewards(pair: PairLogps, *, beta: float, reward: str) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"]]:
    """b times the log-ratio of both answers: the `sum` over tokens, or the `mean` per token."""
    chosen, rejected = beta * pair.chosen_logratio.detach(), beta * pair.rejected_logratio.detach()
    if reward == "sum":
        return chosen, rejected
    return chosen / pair.chosen_length.clamp(min=1), rejected / pair.rejected_length.clamp(min=1)


def pair_metrics(
    pair: PairLogps, batch: PreferenceBatch, *, beta: float, reward: str, sources: Sequence[str]
) -> dict[str, Mean]:
    """Rewards, log-probs, lengths and accuracies of the pairs; per source where there are several."""
    weight = batch.unit_weights("pair")  # (M,)
    chosen, rejected = implicit_rewards(pair, beta=beta, reward=reward)
    difference = chosen - rejected
    right = (difference > 0) + 0.5 * (difference == 0)
    longer = pair.chosen_length - pair.rejected_length  # (M,) tokens

    def over_pairs(values: Tensor, where: Tensor | None = None) -> Mean:
        return Mean.of(values, weight=weight if where is None else weight * where)

    metrics = {
        "rewards/chosen": over_pairs(chosen),
        "rewards/rejected": over_pairs(rejected),
        "rewards/margins": over_pairs(difference),
        "rewards/accuracies": over_pairs(right),
        "rewards/accuracies_chosen_shorter": over_pairs(right, longer < 0),
        "rewards/margin_from_rejected": _ratio(over_pairs(-rejected), over_pairs(difference)),
        "logps/chosen": over_pairs(pair.chosen),
        "logps/rejected": over_pairs(pair.rejected),
        "length_difference": over_pairs(longer),
        "_length_difference_x_margins": over_pairs(longer * difference),
        "_rewards": over_pairs(chosen) + over_pairs(rejected),
    }
    if len(sources) > 1 and "source" in batch.columns:
        source = batch.columns["source"][batch.pairs[:, 0]]  # (M,)
        for index, name in enumerate(sources):
            metrics[f"rewards/accuracies/{name}"] = over_pairs(right, source == index)
            metrics[f"rewards/margins/{name}"] = over_pairs(difference, source == index)
    return metrics


def token_metrics(stats: TokenStats, ref_logps: Float[Tensor, "N T1"], batch: PreferenceBatch) -> dict[str, Mean]:
    """Entropy, token accuracy, logits and drift from the reference over the trained tokens; the truncated share."""
    weight, (first, second) = batch.unit_weights("pair"), batch.pairs.unbind(1)  # (M,) each
    mask = stats.mask * 1.0  # (N, T)

    def over_tokens(values: Tensor, rows: Tensor) -> Mean:
        return Mean.of(values[rows], weight=mask[rows] * weight[:, None])

    def over_both(values: Tensor) -> Mean:
        return over_tokens(values, first) + over_tokens(values, second)

    metrics = {
        "logits/chosen": over_tokens(stats.extra["mean_logit"], first),
        "logits/rejected": over_tokens(stats.extra["mean_logit"], second),
        "entropy": over_both(stats.required_entropy),
        "mean_token_accuracy": over_tokens(stats.extra["top1"], first),
    }
    if ref_logps.shape == stats.logps.shape:
        away = (ref_logps - stats.logps).detach().clamp(max=20.0)  # (N, T); exp(20) is drift enough
        metrics["kl"] = over_both(torch.expm1(away) - away)
    if "divergence" in stats.extra:
        metrics["kl/sequential"] = over_both(stats.extra["divergence"])
    if "truncated" in batch.columns:
        metrics["truncated"] = Mean.of(batch.columns["truncated"][batch.pairs], weight=weight[:, None].expand(-1, 2))
    return metrics


def _ratio(numerator: Mean, denominator: Mean) -> Mean:
    """A mean whose value is the quotient of two sums; it knows no standard error."""
    unknown = torch.full_like(numerator.total, torch.nan)
    return Mean(total=numerator.total, weight=denominator.total, squares=unknown)
