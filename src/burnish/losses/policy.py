"""Policy losses: `PolicyTokens` -> `TokenLoss`, the loss of each token or answer, lower is better.

Facts of a row, which the rooms ask for instead of its name:
- `ratio`: what `log_ratio` is of: a `token`, a whole `sequence`, a token with the value of its sequence
  (`sequence_token`), or `none`, for losses that weight with no ratio.
- `ratios`: the levels that `importance_sampling_level` may choose instead; empty: the ratio is part of the loss.
- `aggregation`: how its losses become a mean, a row of `burnish.losses.reduce`.
- `needs`: what the forward has to compute for it beyond log-probs: `entropy`.
- `correction`: whether the sampler's importance weights multiply the losses (`outside`) or the loss reads them itself
  (`inside`).
- `paper_values`: the hyper-parameters of its paper, where they are not the defaults.
Notation: r = exp(log_ratio), A = advantage, e = epsilon, h = epsilon_high, sg = stop gradient, |y| = trained tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch

from burnish.losses.kl import LARGEST_EXPONENT
from burnish.registry import Table
from burnish.types import PolicyTokens, TokenLoss

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from burnish.registry import Entry

RATIO_LEVELS = ("token", "sequence", "sequence_token")

policy_losses: Table[..., TokenLoss] = Table(
    "policy loss",
    ratio="token",
    ratios=RATIO_LEVELS,
    aggregation="token_mean",
    needs=frozenset[str](),
    correction="outside",
    paper_values=MappingProxyType[str, Any]({}),
)
policy_loss = policy_losses.register


def with_ratio(tokens: PolicyTokens, level: str) -> PolicyTokens:
    """The tokens with `log_ratio` of policy to old policy, in at least float32.

        token           logps - old_logps                                   (N, T)
        sequence        its mean over the trained tokens of the answer      (N, 1)
        sequence_token  sg[sequence] + logps - sg[logps]: the value of the sequence, the gradient of the token (N, T)
        none            none: the loss weights with no ratio

    Raises:
        ValueError: `level` is something else.

    Source: PPO (1707.06347); sequence and sequence_token: GSPO (2507.18071) eq. 7 and 14.
    """
    logps = tokens.logps.to(torch.promote_types(tokens.logps.dtype, torch.float32))
    token = torch.where(tokens.mask, logps - tokens.old_logps, 0.0)  # (N, T)
    sequence = token.sum(1, keepdim=True) / tokens.mask.sum(1, keepdim=True).clamp(min=1)  # (N, 1)
    if level == "none":
        return replace(tokens, log_ratio=None)
    ratios = {
        "token": token,
        "sequence": sequence,
        "sequence_token": sequence.detach() + torch.where(tokens.mask, logps - logps.detach(), 0.0),
    }
    if level not in ratios:
        raise ValueError(f"unknown ratio level {level!r}; known: {', '.join([*ratios, 'none'])}")
    return replace(tokens, log_ratio=ratios[level])


def ratio_level(entry: Entry[Any, TokenLoss], importance_sampling_level: str | None = None) -> str:
    """The level of a row's ratio: what is asked for, else its own.

    Raises:
        ValueError: a level that the row does not work with.
    """
    own: str = entry.facts["ratio"]
    if importance_sampling_level is None or importance_sampling_level == own:
        return own
    if importance_sampling_level not in entry.facts["ratios"]:
        allowed = [own, *(level for level in entry.facts["ratios"] if level != own)]
        raise ValueError(
            f"importance_sampling_level={importance_sampling_level!r} does not go with the policy loss {entry.name!r}, "
            f"whose ratio is {' or '.join(repr(level) for level in allowed)}: leave it at None"
        )
    return importance_sampling_level


def apply_policy_loss(
    entry: Entry[Any, TokenLoss],
    tokens: PolicyTokens,
    *,
    importance_sampling_level: str | None = None,
    keep: Bool[Tensor, "N T1"] | None = None,
) -> TokenLoss:
    """A row on tokens: the ratio it asks for, its losses, the sampler's correction, and what is left out.

    Args:
        entry: a row of the table, its hyper-parameters bound.
        tokens: `log_ratio` is chosen here.
        importance_sampling_level: a ratio other than the row's own.
        keep: (N, T) or (N, 1): where False the policy loss is 0, and is still counted in what it is averaged over.
    """
    tokens = with_ratio(tokens, ratio_level(entry, importance_sampling_level))
    result = entry.function(tokens)
    losses = result.losses
    if tokens.importance_weights is not None and entry.facts["correction"] == "outside":
        losses = losses * tokens.importance_weights
    if keep is not None:
        losses = torch.where(keep, losses, torch.zeros_like(losses))
    return replace(result, losses=losses)


def check_policy_loss(entry: Entry[Any, TokenLoss], importance_sampling_level: str | None = None) -> None:
    """Call a row on two answers, so that a wrong option or result is found before a model is loaded.

    Args:
        entry: a row of the table, its hyper-parameters bound.
        importance_sampling_level: a ratio other than the row's own.

    Raises:
        ValueError: the ratio is not the row's, the losses or metrics are no number a token or answer, or the losses
            do not depend on the policy.
        TypeError: the result is no `TokenLoss`.
    """
    logps = torch.full((2, 3), -1.0, requires_grad=True)
    tokens = PolicyTokens(
        logps=logps,
        old_logps=torch.full((2, 3), -1.0),
        advantages=torch.tensor([[1.0], [-1.0]]),
        mask=torch.tensor([[True, True, True], [True, True, False]]),
        entropy=torch.ones(2, 3),
    )
    tokens = with_ratio(tokens, ratio_level(entry, importance_sampling_level))
    result = cast("object", entry.function(tokens))  # of the user: it may be anything
    if not isinstance(result, TokenLoss):
        raise TypeError(
            f"the policy loss {entry.name!r} returned {type(result).__name__}: "
            "return TokenLoss(losses=..., metrics=...)"
        )
    for name, values in {"losses": result.losses, **result.metrics}.items():
        if values.shape not in ((2, 3), (2, 1)):
            raise ValueError(
                f"the policy loss {entry.name!r} returned {name} of shape {tuple(values.shape)} for two answers of up "
                "to three tokens: return (N, T), one number a token, or (N, 1), one an answer, not a sum or a mean"
            )
    if not result.losses.requires_grad:
        raise ValueError(
            f"the losses of the policy loss {entry.name!r} do not depend on the policy: compute them from `logps` or "
            "`log_ratio`, which have a gradient"
        )


def exp_ratio(log_ratio: Float[Tensor, "N T1"]) -> Float[Tensor, "N T1"]:
    """r = exp(log_ratio), bounded where float32 would overflow."""
    return log_ratio.clamp(max=LARGEST_EXPONENT).exp()


_GSPO_VALUES: Mapping[str, Any] = MappingProxyType({"epsilon": 3e-4, "epsilon_high": 4e-4})


@policy_loss("luspo", ratio="sequence", aggregation="seq_mean_token_sum", paper="2602.05261")
@policy_loss(
    "gspo_token",
    ratio="sequence_token",
    aggregation="seq_mean_token_mean",
    paper="2507.18071",
    paper_values=_GSPO_VALUES,
)
@policy_loss("gspo", ratio="sequence", aggregation="seq_mean_token_mean", paper="2507.18071", paper_values=_GSPO_VALUES)
@policy_loss(
    "dr_grpo",
    aggregation="token_sum_norm",
    paper="2503.20783",
    paper_values=MappingProxyType({"scale_rewards": "none"}),
)
@policy_loss("bnpo", aggregation="token_mean", paper="2503.14476")
@policy_loss("ppo", aggregation="token_mean", paper="1707.06347")
@policy_loss(
    "dapo", aggregation="token_mean", paper="2503.14476", paper_values=MappingProxyType({"epsilon_high": 0.28})
)
@policy_loss("grpo", aggregation="seq_mean_token_mean", paper="2402.03300")
def clip(
    tokens: PolicyTokens, *, epsilon: float = 0.2, epsilon_high: float | None = None, delta: float | None = None
) -> TokenLoss:
    """Clipped surrogate of PPO: no gradient where the ratio has left its interval in the direction that A asks for.

    loss = -min(min(r, delta) A, clamp(r, 1 - e, 1 + h) A)

    `epsilon_high` None is `epsilon`. `delta` bounds the loss where A < 0 and r is large; it is the dual clip. The rows
    differ in ratio and aggregation alone. `ppo` is the same with advantages of a critic, and `bnpo`
    TRL's name for `dapo` over a micro-batch; divided once by the tokens of the step the three are one loss.

    Raises:
        ValueError: `epsilon` is negative, or `delta` lies inside the interval.

    Source: PPO (1707.06347) eq. 7; `epsilon_high`: DAPO (2503.14476) eq. 8; `delta`: INTELLECT-2 (2505.07291) section
    4.1; the sum over tokens of a sequence ratio: LUSPO (2602.05261).

    >>> import torch
    >>> from burnish.types import PolicyTokens
    >>> old, ratio = torch.zeros(1, 3), torch.tensor([[0.5, 1.0, 1.5]])
    >>> tokens = PolicyTokens(logps=ratio.log(), old_logps=old, advantages=torch.ones(1, 1), mask=ratio > 0)
    >>> clip(with_ratio(tokens, "token")).losses
    tensor([[-0.5000, -1.0000, -1.2000]])
    """
    high = epsilon if epsilon_high is None else epsilon_high
    _check_interval(epsilon, high, delta)
    advantages, ratio = tokens.advantages, exp_ratio(tokens.required_log_ratio)
    clipped = ratio.clamp(1 - epsilon, 1 + high)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    losses = -torch.minimum(bounded * advantages, clipped * advantages)
    low = (ratio < 1 - epsilon) & (advantages < 0)
    return TokenLoss(losses=losses, metrics=clip_metrics(low, (ratio > 1 + high) & (advantages > 0)))


@policy_loss("dual_clip", aggregation="token_mean", paper="1912.09729")
def dual_clip(
    tokens: PolicyTokens, *, epsilon: float = 0.2, epsilon_high: float | None = None, dual_clip_c: float = 3.0
) -> TokenLoss:
    """PPO with a floor: an answer that was bad and became likely pulls no harder than one c times as likely.

    loss = -min(r A, clamp(r, 1 - e, 1 + h) A) where A >= 0,   -max(min(r A, clamp(r, 1 - e, 1 + h) A), c A) where A < 0

    For c > 1 + h, as required, this is `clip` with delta = c.

    Source: dual-clip PPO (1912.09729).
    """
    return clip(tokens, epsilon=epsilon, epsilon_high=epsilon_high, delta=dual_clip_c)


def _check_interval(epsilon: float, high: float, delta: float | None) -> None:
    if epsilon < 0 or high < 0:
        raise ValueError(f"epsilon={epsilon!r} and epsilon_high={high!r} are widths of an interval around 1: 0 or more")
    if delta is not None and delta <= 1 + high:
        raise ValueError(
            f"delta={delta!r} bounds the ratio beyond the interval of the clip, which ends at {1 + high!r}: "
            "set it above that, or to None"
        )


def clip_metrics(low: Bool[Tensor, "N T1"], high: Bool[Tensor, "N T1"]) -> dict[str, Tensor]:
    """What is logged of a clip: the shares that have no gradient below, above and on either side of the interval."""
    shares = {"low": low, "high": high, "region": low | high}
    return {f"clip_ratio/{name}_mean": share.float() for name, share in shares.items()}
