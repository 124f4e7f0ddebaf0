"""GAE: values and rewards of tokens -> advantages and returns (N, T), of single answers; whitening over a round.

    final score, token rewards --rewards_at_tokens--> (N, T) --gae--> advantages, returns --whiten--> advantages

Nothing is read outside of `mask`, and every result is 0 there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def gae(
    values: Float[Tensor, "N T"],
    rewards: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    gamma: float,
    lam: float | Float[Tensor, "N"],
    bootstrap: Float[Tensor, "N 1"] | None = None,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Generalised advantage estimation over the trained tokens of each answer.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   returns = A + V

    t + 1 is the next trained token: tokens between turns that nobody chose are passed over.

    Args:
        values: (N, T) the critic's estimate before each token.
        rewards: (N, T) of single tokens, KL included, the answer's own at its last trained token.
        mask: (N, T) the trained tokens; nothing is read outside of it, and both results are 0 there.
        gamma: discount of a token.
        lam: 1 trusts the rewards, 0 the critic; (N,) for one that depends on the answer's length.
        bootstrap: (N, 1) the value after the last token, for answers that were cut; None or 0: they ended.

    Returns:
        advantages and returns, without gradient.

    Source: GAE (1506.02438) eq. 16; lam by length: VAPO (2504.05118).
    """
    values, rewards = (torch.where(mask, t.detach(), torch.zeros_like(t)) for t in (values, rewards))
    next_value = values.new_zeros(len(values)) if bootstrap is None else bootstrap.detach().squeeze(1)
    next_advantage = torch.zeros_like(next_value)
    columns: list[Tensor] = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # (N,)
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        columns.append(next_advantage)
    advantages = torch.where(mask, torch.stack(columns[::-1], 1), torch.zeros_like(values))
    return advantages, advantages + values


def length_lambda(mask: Bool[Tensor, "N T"], *, alpha: float) -> Float[Tensor, "N"]:
    """The `lam` of each answer: nearer 1 the longer it is, so that the last reward reaches its first token.

        lam = max(0, 1 - 1 / (alpha l)),   l = trained tokens

    Source: VAPO (2504.05118) eq. 8, alpha = 0.05.

    >>> import torch
    >>> length_lambda(torch.ones(1, 40, dtype=torch.bool), alpha=0.05)
    tensor([0.5000], dtype=torch.float64)
    """
    lengths = mask.sum(1).clamp(min=1).double()
    return (1 - 1 / (alpha * lengths)).clamp(min=0)


def rewards_at_tokens(
    scores: Float[Tensor, "N"], mask: Bool[Tensor, "N T"], token_rewards: Float[Tensor, "N T"] | None = None
) -> Float[Tensor, "N T"]:
    """The rewards of single tokens, and the score of the answer at its last trained token: never at padding.

    Args:
        scores: what belongs to no token; NaN, of an answer that nothing scored, is 0.
        mask: the trained tokens. An answer without any earns nothing.
        token_rewards: (N, T) what belongs to single tokens, 0 at padding; or None. What a token earns that is not
            trained, such as the tool's last one of a turn, the trained token before it has, or else the first one.

    >>> import torch
    >>> rewards_at_tokens(torch.tensor([2.0]), torch.tensor([[True, True, False]]), torch.tensor([[0.0, 0.5, 0.25]]))
    tensor([[0.0000, 2.7500, 0.0000]])
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    before = torch.where(mask, places, -1).cummax(1).values  # (N, T) the trained token there, or the one before
    rewards = torch.where(places == before[:, -1:], scores.nan_to_num(0.0)[:, None], 0.0)  # (N, T)
    if token_rewards is not None:
        owner = torch.where(before >= 0, before, mask.long().argmax(1, keepdim=True))
        rewards = rewards.scatter_add(1, owner, token_rewards.to(rewards.dtype))
    return torch.where(mask, rewards, torch.zeros_like(rewards))


def token_moments(values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance () over the trained tokens; 0 of none."""
    count = mask.sum()
    mean = torch.where(mask, values, 0.0).sum() / count.clamp(min=1)
    return mean, (torch.where(mask, values - mean, 0.0) ** 2).sum() / (count - 1).clamp(min=1)


def whiten(
    values: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    shift_mean: bool = True,
    eps: float = 1e-8,
    moments: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "N T"]:
    """Values of mean 0 and variance 1 over the trained tokens of the round; 0 elsewhere, and all 0 if they are equal.

        (x - mean) / sqrt(var + eps),   + mean if not `shift_mean`;   var is unbiased

    Args:
        values: of these answers.
        mask: the trained tokens; nothing is read outside of it.
        shift_mean: False keeps the mean where it is.
        eps: beside the variance.
        moments: mean and variance over the whole round, if these answers are only a part of it.

    Source: whitening of advantages in PPO for language models, TRL's `masked_whiten`.
    """
    mean, variance = token_moments(values, mask) if moments is None else moments
    scaled = torch.where(mask, values - mean, 0.0) * torch.rsqrt(variance + eps)
    return scaled if shift_mean else scaled + torch.where(mask, mean, 0.0)
