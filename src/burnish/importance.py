"""Importance weights: what corrects for the sampler being another distribution than the old policy.

The engine that draws tokens computes their log-probs otherwise than the trainer does: other kernels, another precision,
older weights. The weight of a token is w = exp(old_logps - sampler_logps), or the product of these over its answer, and
is kept in bounds: `truncate` sets what lies outside to the bound, `mask` to 0. A product over a long answer leaves any
bounds soon; `sampling/dropped` shows how much of the round a mask takes out.

Each row is a function (old_logps, sampler_logps, mask) -> `ImportanceWeights`, with hyper-parameters clip_max and
clip_min; None is no bound. The fact `level` is `token` or `sequence`: with the latter every token of an answer has the
answer's weight, which a loss that multiplies weights up itself (the fact `correction` = `inside`) cannot take. A token
whose sampler log-prob is NaN, because the engine did not give one, has w = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from burnish.registry import Table

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from burnish.registry import Entry
    from burnish.types import TokenLoss

LARGEST_EXPONENT = 40.0  # a weight that large times a loss is still a float32


@dataclass(frozen=True, kw_only=True, eq=False)
class ImportanceWeights:
    """What a correction returns, without gradient.

    Attributes:
        weights: (N, T) the factor of each token's loss; 1 outside the mask.
        metrics: numbers per token (N, T) or per answer (N, 1); the mean over trained tokens, or answers, is logged.
    """

    weights: Float[Tensor, "N T"]
    metrics: Mapping[str, Float[Tensor, "N T1"]]


importance_corrections: Table[..., ImportanceWeights] = Table("importance correction", level="token")
importance_correction = importance_corrections.register


def check_correction(entry: Entry[..., ImportanceWeights], loss: Entry[..., TokenLoss]) -> None:
    """Refuse a correction that a policy loss cannot take.

    Raises:
        ValueError: every token has the weight of its whole answer, and the loss multiplies the weights of an answer's
            tokens up itself: it would be there to the power of the answer's length.
    """
    if loss.facts["correction"] == "inside" and entry.facts["level"] == "sequence":
        rows = [importance_corrections[name] for name in importance_corrections]
        fitting = [row.name for row in rows if row.facts["level"] == "token"]
        raise ValueError(
            f"importance_sampling_mode={entry.name!r} gives each token the weight of its whole answer, and the policy "
            f"loss {loss.name!r} multiplies the weights of an answer's tokens up itself: choose "
            f"{' or '.join(fitting)}, or importance_sampling_correction=False"
        )


@importance_correction("token_truncate")
def token_truncate(
    old_logps: Float[Tensor, "N T"],
    sampler_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> ImportanceWeights:
    """Truncated importance sampling, token by token.

    weight = clamp(w, clip_min, clip_max)

    Source: truncated importance sampling for rollout engines, verl#2953.
    """
    gap = _gap(old_logps, sampler_logps, mask)
    weights = _exp(gap)
    return _finish(weights, _truncate(weights, clip_max, clip_min), gap, sampler_logps, mask)


@importance_correction("token_mask", paper="2510.18855")
def token_mask(
    old_logps: Float[Tensor, "N T"],
    sampler_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> ImportanceWeights:
    """Masked importance sampling, token by token.

    weight = w where clip_min <= w <= clip_max, else 0

    Source: IcePop, in Ring-1T (2510.18855).
    """
    gap = _gap(old_logps, sampler_logps, mask)
    weights = _exp(gap)
    return _finish(weights, _mask(weights, clip_max, clip_min), gap, sampler_logps, mask)


@importance_correction("sequence_truncate", level="sequence")
def sequence_truncate(
    old_logps: Float[Tensor, "N T"],
    sampler_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> ImportanceWeights:
    """Truncated importance sampling with the whole answer as one action.

    weight = clamp(product over tokens of w, clip_min, clip_max)

    Source: as `token_truncate`.
    """
    gap = _gap(old_logps, sampler_logps, mask)
    weights = _exp(gap.sum(1, keepdim=True))
    return _finish(weights, _truncate(weights, clip_max, clip_min), gap, sampler_logps, mask)


@importance_correction("sequence_mask", level="sequence")
def sequence_mask(
    old_logps: Float[Tensor, "N T"],
    sampler_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_max: float | None = 3.0,
    clip_min: float | None = None,
) -> ImportanceWeights:
    """Masked importance sampling with the whole answer as one action: answers are dropped whole.

    weight = W where clip_min <= W <= clip_max, else 0,   W = product over tokens of w

    Source: as `token_mask`; the default of TRL.
    """
    gap = _gap(old_logps, sampler_logps, mask)
    weights = _exp(gap.sum(1, keepdim=True))
    return _finish(weights, _mask(weights, clip_max, clip_min), gap, sampler_logps, mask)


def _gap(
    old_logps: Float[Tensor, "N T"], sampler_logps: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """old - sampler in nats; 0 where nothing is trained, and where the engine gave no log-prob."""
    known = mask & ~sampler_logps.isnan()
    return torch.where(known, old_logps.detach() - sampler_logps, 0.0)


def _exp(gap: Float[Tensor, "N T1"]) -> Float[Tensor, "N T1"]:
    return gap.clamp(max=LARGEST_EXPONENT).exp()


def _truncate(weights: Tensor, clip_max: float | None, clip_min: float | None) -> Tensor:
    low, high = _bounds(clip_max, clip_min)
    return weights.clamp(low, high)


def _mask(weights: Tensor, clip_max: float | None, clip_min: float | None) -> Tensor:
    low, high = _bounds(clip_max, clip_min)
    return torch.where((weights >= low) & (weights <= high), weights, torch.zeros_like(weights))


def _bounds(clip_max: float | None, clip_min: float | None) -> tuple[float, float]:
    low, high = 0.0 if clip_min is None else clip_min, torch.inf if clip_max is None else clip_max
    if not 0 <= low <= 1 <= high:
        raise ValueError(
            f"importance weights are kept in [clip_min, clip_max] = [{clip_min!r}, {clip_max!r}], which has to hold 1, "
            "the weight of a token that sampler and policy agree on: 0 <= clip_min <= 1 <= clip_max"
        )
    return low, high


def _finish(
    raw: Float[Tensor, "N T1"],
    weights: Float[Tensor, "N T1"],
    gap: Float[Tensor, "N T"],
    sampler_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
) -> ImportanceWeights:
    distance = gap.abs()
    metrics = {
        "sampling/sampling_logp_difference/mean": distance,
        "sampling/sampling_logp_difference/row_max": distance.amax(1, keepdim=True),
        "sampling/importance_sampling_ratio/mean": weights,
        "sampling/dropped": (weights == 0).to(gap.dtype),
        "sampling/truncated": ((weights != raw) & (weights > 0)).to(gap.dtype),
        "sampling/unscored": sampler_logps.isnan().to(gap.dtype),
    }
    return ImportanceWeights(weights=torch.where(mask, weights, torch.ones_like(gap)), metrics=metrics)
