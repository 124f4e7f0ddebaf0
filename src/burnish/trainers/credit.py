"""From the rewards of a round to what each token's advantage is, and what the critic is to learn.

    scores -> scaled -> clipped -> - missing end -> at the last token, beside token rewards -> - KL -> whitened
        -> GAE over the trained tokens -> advantages -> whitened over the round -> clipped

Every mean and spread is of the whole round, over all ranks, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from burnish.gae import gae, length_lambda, rewards_at_tokens, whiten
from burnish.losses.kl import kl_estimators
from burnish.rollout.whole import WholeRound
from burnish.runtime.controllers import AdaptiveKL, RunningScale
from burnish.runtime.distributed import sum_over_ranks
from burnish.types import Mean, RolloutBatch, wide

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from burnish.trainers.ppo_options import CreditOptions

POSITIONS = ("0-25", "25-50", "50-75", "75-100")  # percent of an answer


@dataclass(frozen=True, kw_only=True)
class Earned:
    """What the tokens of this rank's answers earned.

    Attributes:
        mask: (N, T) the trained tokens of scored answers.
        scores: (N,) of whole answers, as they go into the rewards; NaN where nothing scored.
        costs: (N, T) what the KL takes off.
        rewards: (N, T) all of it.
        bootstrap: (N, 1) what the critic expects behind the end of answers that were cut, else 0; or None.
    """

    mask: Bool[Tensor, "N T"]
    scores: Float[Tensor, "N"]
    costs: Float[Tensor, "N T"]
    rewards: Float[Tensor, "N T"]
    bootstrap: Float[Tensor, "N 1"] | None


class Credit:
    """The way from rewards to advantages, with what it remembers from round to round.

    Args:
        options: of a trainer.

    Attributes:
        kl_control: moves the coefficient of the KL, or None.
        scale: of scores, or None.
    """

    def __init__(self, options: CreditOptions) -> None:
        self.options = options
        self.kl_control: AdaptiveKL | None = None
        if options.kl_target is not None:
            self.kl_control = AdaptiveKL(initial=options.kl_coef, target=options.kl_target, horizon=options.kl_horizon)
        self.scale = None if options.reward_scaling == "none" else RunningScale()

    @property
    def kl_coef(self) -> float:
        """What a nat costs: in the rewards of the next round, or in the loss of this one."""
        return self.options.kl_coef if self.kl_control is None else self.kl_control.coefficient

    def __call__(
        self, whole: WholeRound, batch: RolloutBatch, *, lam_critic: float | None
    ) -> tuple[RolloutBatch, dict[str, Mean], dict[str, float]]:
        """The batch with advantages and returns; means that are added up; numbers of the whole round.

        Args:
            whole: the rewards of all ranks.
            batch: this rank's answers, with old log-probs and values.
            lam_critic: of the returns; None: as the advantages have it.
        """
        assert batch.values is not None
        options, values = self.options, wide(batch.values)
        of_tokens = whole.rewards.token_rewards
        earned = self.earn(
            whole.mine(whole.rewards.total()), None if of_tokens is None else whole.mine(of_tokens), batch, count=True
        )
        rewards = earned.rewards
        if options.whiten_rewards:
            (moments,) = moments_over_ranks({"rewards": rewards}, earned.mask).values()
            rewards = whiten(rewards, earned.mask, shift_mean=False, moments=moments)
        estimate = _estimator(values, rewards, earned, gamma=options.gamma)
        advantages, returns = estimate(self._lam(earned.mask))
        if lam_critic is not None:
            _, returns = estimate(lam_critic)
        measured = {"values": values, "returns": returns, "advantages": advantages, "errors": returns - values}
        moments = moments_over_ranks(measured, earned.mask)
        if options.whiten_advantages:
            advantages = whiten(advantages, earned.mask, moments=moments["advantages"])
        if options.advantage_clip is not None:
            advantages = advantages.clamp(-options.advantage_clip, options.advantage_clip)
        credited = replace(
            batch,
            advantages=advantages.to(batch.values.dtype),
            returns=returns.to(batch.values.dtype),
            loss_mask=earned.mask,
        )
        ended = sum_over_ranks((batch.columns["truncated"] == 0).sum())
        means, numbers = self._means(earned, batch), {**round_numbers(moments), "val/num_eos_tokens": float(ended)}
        if self.kl_control is not None and not self.options.use_kl_in_reward:
            self._move_kl(means["objective/kl"])  # the loss of this round is still to come
        numbers |= {"kl_coef": self.kl_coef} if batch.ref_logps is not None else {}
        if self.kl_control is not None and self.options.use_kl_in_reward:
            self._move_kl(means["objective/kl"])
        return credited, means, numbers

    def _lam(self, mask: Bool[Tensor, "N T"]) -> float | Tensor:
        alpha = self.options.lam_length_alpha
        return self.options.lam if alpha is None else length_lambda(mask, alpha=alpha).to(mask.device)

    def earn(
        self, totals: Float[Tensor, "N"], of_tokens: Float[Tensor, "N T"] | None, batch: RolloutBatch, *, count: bool
    ) -> Earned:
        """What the tokens of some answers earn.

        Args:
            totals: rewards of the answers; NaN where nothing scored.
            of_tokens: the part of them that belongs to single tokens, at least as wide as the batch; or None.
            batch: the answers, with old and reference log-probs.
            count: move the running scale by these scores first; every rank has to.
        """
        options, width = self.options, batch.loss_mask.shape[1]
        totals = wide(totals)
        tokens = torch.zeros_like(wide(batch.loss_mask))
        if of_tokens is not None:
            tokens = torch.where(batch.completion_mask, wide(of_tokens[:, :width]), tokens)
        scores, tokens = self._scaled(totals, tokens, count=count)
        if options.reward_clip is not None:
            scores = scores.clamp(-options.reward_clip, options.reward_clip)
            tokens = tokens.clamp(-options.reward_clip, options.reward_clip)
        truncated, bootstrap = batch.columns["truncated"].bool(), None
        if options.missing_eos_penalty is not None:
            scores = torch.where(truncated, scores - options.missing_eos_penalty, scores)
        if options.bootstrap_truncated and batch.bootstrap_value is not None:
            scores = torch.where(truncated, torch.where(scores.isnan(), scores, 0.0), scores)
            bootstrap = torch.where(truncated[:, None], wide(batch.bootstrap_value), 0.0)
        mask = batch.loss_mask & ~scores.isnan()[:, None]
        costs = self._costs(batch, mask)
        rewards = rewards_at_tokens(scores, mask, tokens) - costs
        return Earned(mask=mask, scores=scores, costs=costs, rewards=rewards, bootstrap=bootstrap)

    def _scaled(
        self, totals: Float[Tensor, "N"], tokens: Float[Tensor, "N T"], *, count: bool
    ) -> tuple[Tensor, Tensor]:
        """Scores of whole answers, and the rewards of tokens, on the scale of all rounds so far."""
        scores = totals - tokens.sum(1)
        if self.scale is None:
            return scores, tokens
        if count:
            known = torch.where(totals.isnan(), 0.0, totals)
            sums = torch.stack([(~totals.isnan()).sum().to(known.dtype), known.sum(), (known**2).sum()])
            self.scale.update(*sum_over_ranks(sums).tolist())
        shift = self.scale.mean if self.options.reward_scaling == "normalize" else 0.0
        return (scores - shift) / self.scale.std, tokens / self.scale.std

    def _costs(self, batch: RolloutBatch, mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        if batch.ref_logps is None or batch.old_logps is None or not self.options.use_kl_in_reward:
            return torch.zeros(mask.shape, dtype=wide(mask).dtype, device=mask.device)
        estimator = kl_estimators.entry(self.options.kl_estimator)
        kl = estimator.function(wide(batch.old_logps), wide(batch.ref_logps))
        return torch.where(mask, self.kl_coef * kl, 0.0)

    def _means(self, earned: Earned, batch: RolloutBatch) -> dict[str, Mean]:
        """Per answer, under TRL's names; KL by the place in the answer."""
        assert batch.old_logps is not None
        mask, rows = earned.mask, earned.mask.any(1)
        scores, costs = earned.scores.nan_to_num(0.0), earned.costs.sum(1)
        means = {
            "objective/entropy": _of_rows(_row_sum(-wide(batch.old_logps), mask), rows),
            "objective/scores": _of_rows(scores, rows),
            "objective/non_score_reward": _of_rows(-costs, rows),
            "objective/rlhf_reward": _of_rows(_row_sum(earned.rewards, mask), rows),
        }
        if batch.ref_logps is not None:
            log_ratio = wide(batch.old_logps) - wide(batch.ref_logps)  # (N, T)
            means["objective/kl"] = _of_rows(_row_sum(log_ratio, mask), rows)
            place = (4 * (mask.cumsum(1) - 1) / mask.sum(1, keepdim=True).clamp(min=1)).floor()  # (N, T)
            for index, name in enumerate(POSITIONS):
                means[f"kl_position/{name}"] = Mean.of(log_ratio, weight=(mask & (place == index)).double())
        return means

    def _move_kl(self, kl: Mean) -> None:
        """The coefficient follows the KL of this round's answers."""
        assert self.kl_control is not None
        total, count = sum_over_ranks(torch.stack([kl.total, kl.weight])).tolist()
        if count:
            self.kl_control.update(total / count, count)


def _estimator(
    values: Tensor, rewards: Tensor, earned: Earned, *, gamma: float
) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """lam -> advantages and returns."""
    return lambda lam: gae(values, rewards, earned.mask, gamma=gamma, lam=lam, bootstrap=earned.bootstrap)


def moments_over_ranks(
    columns: Mapping[str, Float[Tensor, "N T"]], mask: Bool[Tensor, "N T"]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of each over the trained tokens of all ranks; 0 of none. Two collectives."""
    stacked = torch.stack([torch.where(mask, values, 0.0) for values in columns.values()])  # (K, N, T)
    count = mask.sum().to(stacked.dtype)
    sums = sum_over_ranks(torch.cat([stacked.sum((1, 2)), count[None]]))  # (K + 1,)
    count = sums[-1]
    means = sums[:-1] / count.clamp(min=1)  # (K,)
    centered = torch.where(mask, stacked - means[:, None, None], 0.0)
    variances = sum_over_ranks((centered**2).sum((1, 2))) / (count - 1).clamp(min=1)
    return dict(zip(columns, zip(means, variances, strict=True), strict=True))


def round_numbers(moments: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Mean and spread of values, returns and advantages, and the share of the returns' variance that values explain.

    explained variance = 1 - var(returns - values) / var(returns)
    """
    found: dict[str, float] = {}
    for name in ("values", "returns", "advantages"):
        mean, variance = moments[name]
        found |= {f"{name}/mean": float(mean), f"{name}/std": float(variance.sqrt())}
    of_returns = float(moments["returns"][1])
    if of_returns > 0:
        found["val/explained_variance"] = 1 - float(moments["errors"][1]) / of_returns
    return found


def _row_sum(values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N"]:
    return torch.where(mask, values, 0.0).sum(1)


def _of_rows(values: Float[Tensor, "N"], rows: Bool[Tensor, "N"]) -> Mean:
    return Mean.of(values, weight=rows.double())
