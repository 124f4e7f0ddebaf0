"""KL estimators: log-probs of sampled tokens -> (N, T), an estimate of KL(policy || reference) in nats for each token.

Notation: d = logps - ref_logps, r = exp(logps - old_logps), ∇ = gradient by the policy's weights. An estimator that is
right in value may be wrong in gradient: a loss differentiates the estimate, and not the distribution that the tokens
were drawn from. Multiplied by r (`use_bias_correction_kl`) it does both, and every estimator whose mean is the KL has
the KL's gradient as well. In a reward nothing is differentiated: k1 is the natural choice there.

Facts of a row are what it claims, and `burnish.testing` holds it to them:
- `unbiased`: its mean over the policy's samples is the KL.
- `never_negative`: no value is below 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from burnish.registry import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float
    from torch import Tensor

    from burnish.types import RewardTable

LARGEST_EXPONENT = 40.0  # the product of two such exponentials is still a float32

kl_estimators: Table[..., Tensor] = Table("KL estimator", unbiased=False, never_negative=False)
kl_estimator = kl_estimators.register


@kl_estimator("k1", unbiased=True, paper="1909.08593")
def k1(logps: Float[Tensor, "N T"], ref_logps: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """The log-ratio itself: unbiased, of either sign, of large variance.

    kl = d

    As a loss its gradient is ∇ logps, whose mean over the policy's own samples is 0: it adds noise and constrains
    nothing, unless it is multiplied by r, which makes its mean the KL's gradient.

    Source: in the reward of RLHF (1909.08593) eq. 2; Schulman, "Approximating KL divergence" (2020).
    """
    return logps - ref_logps


@kl_estimator("k2", never_negative=True, paper="2510.01555")
def k2(logps: Float[Tensor, "N T"], ref_logps: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Half the squared log-ratio: biased in value, right in gradient.

    kl = d² / 2

    As a loss its gradient d ∇ logps has the KL's gradient as its mean over the policy's own samples. Multiplied by r
    it no longer has.

    Source: Schulman, "Approximating KL divergence" (2020); its gradient: 2510.01555.
    """
    return (logps - ref_logps) ** 2 / 2


@kl_estimator("k3", unbiased=True, never_negative=True, paper="2402.03300")
def k3(logps: Float[Tensor, "N T"], ref_logps: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Unbiased in value, never negative, of small variance: GRPO's.

    kl = exp(-d) - 1 + d

    As a loss its gradient (1 - exp(-d)) ∇ logps has the gradient of KL(reference || policy) as its mean, the other
    direction; multiplied by r it has the right one.

    Source: GRPO (2402.03300) eq. 4.
    """
    difference = ref_logps - logps  # (N, T)
    return torch.expm1(difference.clamp(max=LARGEST_EXPONENT)) - difference


@kl_estimator("abs", never_negative=True)
def absolute(logps: Float[Tensor, "N T"], ref_logps: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """The absolute log-ratio: a penalty that is no estimate of the KL, which it never falls below in the mean.

    kl = |d|

    As a loss its gradient is sign(d) ∇ logps: every token pulls equally hard, however far it has drifted.

    Source: the option `kl_penalty="abs"` of TRL's first PPO trainer.
    """
    return (logps - ref_logps).abs()


def kl_loss(
    logps: Float[Tensor, "N T"],
    ref_logps: Float[Tensor, "N T"],
    *,
    estimator: Callable[..., Tensor] = k3,
    log_ratio: Float[Tensor, "N T1"] | None = None,
) -> Float[Tensor, "N T"]:
    """What is added to a policy loss, beta times, before it is reduced.

    loss = kl,   or r kl with `log_ratio`

    Args:
        logps: the policy's, with gradient.
        ref_logps: the reference's.
        estimator: a function of the table.
        log_ratio: log r, (N, T) or (N, 1), with gradient: the estimate is corrected for the old policy having drawn the
            tokens, and its gradient becomes that of its mean (`use_bias_correction_kl`).

    Raises:
        ValueError: the estimator has not one number for each token.

    Source: DeepSeek-V3.2 (2512.02556) eq. 7, unbiased KL estimate.
    """
    estimate = estimator(logps, ref_logps)
    if estimate.shape != logps.shape:
        raise ValueError(
            f"the KL estimator {estimator!r} returned shape {tuple(estimate.shape)} for log-probs of shape "
            f"{tuple(logps.shape)}: return one number for each token, not a sum or a mean"
        )
    return estimate if log_ratio is None else estimate * log_ratio.clamp(max=LARGEST_EXPONENT).exp()


def with_kl_penalty(
    rewards: RewardTable, kl: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], *, coefficient: float
) -> RewardTable:
    """The table with a column `kl`, the sum of an answer's estimates, that weighs -coefficient.

    Token by token it is part of `token_rewards`, so that returns-to-go and GAE see it where it arises. An answer that
    nothing scored stays unscored.

    Args:
        rewards: of the round.
        kl: (N, T) estimates, of the policy that made the rollout against the reference.
        mask: (N, T) the trained tokens.
        coefficient: nats are worth that much reward.

    Source: RLHF (1909.08593) eq. 2; per token: InstructGPT (2203.02155) section 3.5.
    """
    per_token = torch.where(mask, kl.detach().to(rewards.rewards.dtype), 0.0)  # (N, T)
    column = torch.where(rewards.scored.any(1), per_token.sum(1), torch.nan)  # (N,)
    before = torch.zeros_like(per_token) if rewards.token_rewards is None else rewards.token_rewards
    return replace(
        rewards,
        rewards=torch.cat([rewards.rewards, column[:, None]], dim=1),
        names=(*rewards.names, "kl"),
        weights=torch.cat([rewards.weights, rewards.weights.new_tensor([-coefficient])]),
        token_rewards=before - coefficient * per_token,
    )
