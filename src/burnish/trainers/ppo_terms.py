"""What PPO adds to the terms of a policy: the critic's, and its metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from burnish.losses.value import value_loss
from burnish.trainers.rescoring import mean_of_tokens
from burnish.types import Mean, RolloutBatch, Term, TokenStats, wide

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.trainers.ppo_options import CriticOptions

RATIO_EDGES = (0.0, 0.5, 0.8, 0.9, 1.1, 1.2, 2.0, float("inf"))


def value_term(
    values: Float[Tensor, "N T"], batch: RolloutBatch, options: CriticOptions
) -> tuple[Term, dict[str, Mean]]:
    """The critic's term of a micro-batch, and its metrics.

    Args:
        values: the critic's, with gradient.
        batch: has the values of the rollout and the returns.
        options: `vf_coef` and `cliprange_value`.
    """
    assert batch.values is not None
    assert batch.returns is not None
    result = value_loss(values, batch.values, batch.returns, cliprange_value=options.cliprange_value)
    metrics = {name: mean_of_tokens(number, batch.loss_mask) for name, number in result.metrics.items()}
    return Term(name="value_avg", losses=result.losses, per="token", coefficient=options.vf_coef), metrics


def policy_metrics(stats: TokenStats, batch: RolloutBatch, known: Mapping[str, Mean]) -> dict[str, Mean]:
    """How far the policy is from the one that drew the round, under TRL's names.

    approxkl = 1/2 mean of (log r)²,   r = policy / old policy
    """
    assert batch.old_logps is not None
    log_ratio = wide(stats.logps.detach()) - wide(batch.old_logps)  # (N, T)
    ratio = log_ratio.exp()
    bins = torch.bucketize(ratio, torch.tensor(RATIO_EDGES[1:-1], dtype=ratio.dtype, device=ratio.device), right=True)
    histogram = {
        f"ratio/{low:g}-{high:g}": mean_of_tokens((bins == index).to(ratio.dtype), stats.mask)
        for index, (low, high) in enumerate(pairwise(RATIO_EDGES))
    }
    clipped = {"policy/clipfrac_avg": known["clip_ratio/region_mean"]} if "clip_ratio/region_mean" in known else {}
    return {
        "policy/approxkl_avg": mean_of_tokens(log_ratio**2 / 2, stats.mask),
        "policy/entropy_avg": known["entropy"],
        "val/ratio": mean_of_tokens(ratio, stats.mask),
        **clipped,
        **histogram,
    }


def unmeasured(follows: Iterable[tuple[str, float | None]], like: Tensor) -> dict[str, Mean]:
    """Followed metrics of a step in which the policy rests: means of nothing."""
    return {name: Mean.of(like).without_weight() for name, _ in follows}
