"""Policy losses that weight the gradient otherwise than by a clip: capped, soft, shaped, geometric, not at all.

Facts and notation as in `burnish.losses.policy`.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from burnish.losses.policy import clip_metrics, exp_ratio, policy_loss
from burnish.types import TokenLoss

if TYPE_CHECKING:
    from burnish.types import PolicyTokens

CISPO_CAP = 5.0  # of ScaleRL (2510.13786); CISPO's own paper does not tell its value
SMALLEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT = math.log(1e-8), 20.0  # of VESPO's authors


@policy_loss(
    "cispo", aggregation="token_mean", paper="2506.13585", paper_values=MappingProxyType({"epsilon_high": 5.0})
)
def cispo(tokens: PolicyTokens, *, epsilon_high: float | None = None) -> TokenLoss:
    """REINFORCE with a capped importance weight: every token keeps a gradient, none dominates.

    loss = -sg[min(r, h)] A logps

    `epsilon_high` is the cap itself, not its distance from 1, as in TRL and ScaleRL; None is 5.

    Source: CISPO, MiniMax-M1 (2506.13585) eq. 4; the cap: ScaleRL (2510.13786).
    """
    cap = CISPO_CAP if epsilon_high is None else epsilon_high
    if cap <= 0:
        raise ValueError(f"epsilon_high={epsilon_high!r}: in the policy loss cispo it is the largest weight, 5.0 say")
    ratio = exp_ratio(tokens.required_log_ratio).detach()
    losses = -ratio.clamp(max=cap) * tokens.advantages * tokens.logps
    return TokenLoss(losses=losses, metrics={"cispo_clip_ratio": (ratio > cap).float()})


@policy_loss("sapo", aggregation="seq_mean_token_mean", paper="2511.20347")
def sapo(tokens: PolicyTokens, *, sapo_temperature_pos: float = 1.0, sapo_temperature_neg: float = 1.05) -> TokenLoss:
    """A soft gate in the place of the clip: the gradient fades as the ratio leaves 1, and never stops.

    loss = -(4 / tau) σ(tau (r - 1)) A,   tau = sapo_temperature_pos where A > 0, else sapo_temperature_neg

    At r = 1 its gradient is that of r A. A larger tau fades faster.

    Source: SAPO (2511.20347), soft gates.
    """
    if sapo_temperature_pos <= 0 or sapo_temperature_neg <= 0:
        raise ValueError(
            f"sapo_temperature_pos={sapo_temperature_pos!r} and sapo_temperature_neg={sapo_temperature_neg!r} "
            "must be above 0; the paper has 1.0 and 1.05"
        )
    ratio = exp_ratio(tokens.required_log_ratio)
    tau = torch.where(tokens.advantages > 0, ratio.new_tensor(sapo_temperature_pos), sapo_temperature_neg)
    return TokenLoss(losses=-4 / tau * torch.sigmoid(tau * (ratio - 1)) * tokens.advantages)


@policy_loss("vespo", ratios=(), aggregation="token_mean", correction="inside", paper="2602.10693")
def vespo(
    tokens: PolicyTokens,
    *,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
) -> TokenLoss:
    """REINFORCE with a gamma-shaped weight of the whole answer's ratio, which is largest near 1.

    loss = -sg[phi(w)] A logps,   phi(w) = w^k exp(lambda (1 - w)),   w = exp(sum over tokens of log_ratio + log c)

    c are the sampler's importance weights, so that w is the ratio of policy to sampler. log_ratio is kept in ±20 for
    each token, log w in [log 1e-8, 20]. k and lambda are those of `pos` where A >= 0, else those of `neg`. phi(1) = 1.

    Source: VESPO (2602.10693), gamma weighting.
    """
    log_ratio = tokens.required_log_ratio.detach().clamp(-LARGEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT)  # (N, T)
    if tokens.importance_weights is not None:
        correction = tokens.importance_weights.log().clamp(SMALLEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT)
        log_ratio = log_ratio + torch.where(tokens.mask, correction, 0.0)
    log_w = log_ratio.sum(1, keepdim=True).clamp(SMALLEST_LOG_WEIGHT, LARGEST_LOG_WEIGHT)  # (N, 1)
    is_good = tokens.advantages >= 0
    k = torch.where(is_good, log_w.new_tensor(vespo_k_pos), vespo_k_neg)
    rate = torch.where(is_good, log_w.new_tensor(vespo_lambda_pos), vespo_lambda_neg).clamp(min=1e-4)
    phi = (rate + k * log_w - rate * log_w.exp()).exp()
    return TokenLoss(losses=-phi * tokens.advantages * tokens.logps, metrics={"vespo/phi_seq_mean": phi})


@policy_loss(
    "gmpo",
    ratios=(),
    aggregation="seq_mean_token_mean",
    paper="2507.20673",
    paper_values=MappingProxyType({"epsilon": 0.4, "epsilon_high": 0.4}),
)
def gmpo(tokens: PolicyTokens, *, epsilon: float = 0.2, epsilon_high: float | None = None) -> TokenLoss:
    """The geometric mean of the clipped ratios of an answer, where GRPO has the arithmetic one.

    loss = -exp((1 / |y|) sum over tokens of c) A,   c = min(log r, h) where A > 0, else max(log r, -e)

    The interval is one of logarithms, from exp(-e) to exp(h): wider ones than those of the other losses are usual.
    `epsilon_high` None is `epsilon`. The loss is one number an answer. With one advantage a token, the sign of each is
    its own, and the number is that of the answer times A.

    Source: GMPO (2507.20673).
    """
    high = epsilon if epsilon_high is None else epsilon_high
    advantages, log_ratio = tokens.advantages, tokens.required_log_ratio  # (N, T)
    clipped = torch.where(advantages > 0, log_ratio.clamp(max=high), log_ratio.clamp(min=-epsilon))
    length = tokens.mask.sum(1, keepdim=True).clamp(min=1)  # (N, 1)
    mean = torch.where(tokens.mask, clipped, 0.0).sum(1, keepdim=True) / length
    low = (log_ratio < -epsilon) & (advantages < 0)
    losses = -exp_ratio(mean) * advantages
    return TokenLoss(losses=losses, metrics=clip_metrics(low, (log_ratio > high) & (advantages > 0)))


@policy_loss("reinforce", ratio="none", ratios=(), aggregation="seq_mean_token_sum", paper="2402.14740")
def reinforce(tokens: PolicyTokens) -> TokenLoss:
    """The policy gradient itself: no ratio, so the tokens should be the policy's own.

    loss = -A logps

    With `rloo` advantages and k1 in the reward it is RLOO.

    Source: REINFORCE for language models (2402.14740).
    """
    return TokenLoss(losses=-tokens.advantages * tokens.logps)
