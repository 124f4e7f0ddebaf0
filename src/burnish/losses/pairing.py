"""Rows -> pairs: the log-probs of tokens become those of the two answers of each pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.types import PairLogps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from burnish.types import PreferenceBatch, TokenStats

WPO_LARGEST_WEIGHT = 1.0


def pair_logps(
    stats: TokenStats, ref_logps: Float[Tensor, "N T1"], batch: PreferenceBatch, *, ld_alpha: float | None = None
) -> PairLogps:
    """Sums over the trained tokens of both answers of each pair.

    With `ld_alpha` (length-desensitised DPO) the tokens of an answer beyond the length of the other one count
    `ld_alpha`, in policy and reference:

        log π(y) = sum over t <= m of log π(y_t) + ld_alpha sum over t > m,   m = min(|y_w|, |y_l|)

    Args:
        stats: the policy's.
        ref_logps: the reference's, per token (N, T), or summed over each row (N, 1).
        batch: which rows are pairs.
        ld_alpha: in [0, 1], or None for 1.

    Raises:
        ValueError: `ld_alpha` with a reference that is summed over rows.

    Source: LD-DPO (2409.06411) eq. 10 and 11.
    """
    first, second = batch.pairs.unbind(1)  # (M,), (M,)
    ref_logps, lengths = ref_logps.to(stats.logps.dtype), stats.lengths
    shared = torch.minimum(lengths[first], lengths[second])  # (M,)

    def summed(logps: Tensor, rows: Int[Tensor, "M"]) -> Float[Tensor, "M"]:
        if ld_alpha is None:
            return logps.sum(1)[rows]
        return (logps[rows] * _token_weights(stats.mask[rows], shared, ld_alpha)).sum(1)

    if ld_alpha is not None and ref_logps.shape != stats.logps.shape:
        raise ValueError("ld_alpha weights tokens, and the reference's log-probs are known as sums over each answer")
    divergence = stats.extra.get("divergence")
    kl = None if divergence is None else divergence.sum(1)  # (N,)
    return PairLogps(
        chosen=summed(stats.logps, first),
        rejected=summed(stats.logps, second),
        ref_chosen=summed(ref_logps, first),
        ref_rejected=summed(ref_logps, second),
        chosen_length=lengths[first],
        rejected_length=lengths[second],
        chosen_row=first,
        margin=None if batch.margin is None else batch.margin.to(stats.logps.dtype),
        chosen_kl=None if kl is None else kl[first],
        rejected_kl=None if kl is None else kl[second],
    )


def wpo_weights(stats: TokenStats, batch: PreferenceBatch) -> Float[Tensor, "M"]:
    """How likely the policy itself is to answer so: pairs from far away count less. Without gradient.

    weight = min(1, w_w w_l),   w = exp(mean over tokens of [log π(y_t) - log sum over v of π(v)²])

    The bound of 1 is that of the authors' code.

    Source: WPO (2406.11827) eq. 2 (sampled alignment).
    """
    mask = stats.mask
    aligned = torch.where(mask, stats.logps - torch.where(mask, stats.extra["sum_p2"], 1).log(), 0).detach()  # (N, T)
    mean = aligned.sum(1) / stats.lengths.clamp(min=1)  # (N,)
    return mean[batch.pairs].sum(1).exp().clamp(max=WPO_LARGEST_WEIGHT)


def _token_weights(mask: Bool[Tensor, "M T"], shared: Float[Tensor, "M"], tail: float) -> Float[Tensor, "M T"]:
    """1 for the first `shared` trained tokens of each row, `tail` for the others."""
    position = mask.cumsum(1)  # of a trained token, from 1
    return torch.where(position <= shared[:, None], 1.0, tail)
