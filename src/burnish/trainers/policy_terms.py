"""The objective of a policy trainer: options -> closed functions of `PolicyTokens`, checked before a model is loaded.

tokens -> ratio -> policy loss x sampler correction -> + beta KL - entropy_coef entropy -> reduced -> Terms
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.losses.auxiliary import entropy_bonus
from burnish.losses.kl import kl_estimators, kl_loss
from burnish.losses.policy import apply_policy_loss, check_policy_loss, policy_losses, ratio_level, with_ratio
from burnish.losses.reduce import reduce_tokens
from burnish.registry import Entry
from burnish.trainers.rescoring import mean_of_tokens
from burnish.types import Mean, PolicyTokens, RolloutBatch, Term, TokenLoss, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from burnish.trainers.policy_options import PolicyLossOptions


@dataclass(frozen=True)
class PolicyObjective:
    """A bound policy loss, and what is added to it.

    Attributes:
        entry: the row of the table of policy losses, its hyper-parameters bound.
        level: what the ratio is of.
        max_completion_length: the constant of `token_sum_norm`.
        kl: the estimator.
        kl_coef: factor of the KL in the loss; 0: none.
        correct_kl: multiply the KL by the ratio.
    """

    entry: Entry[Any, TokenLoss]
    level: str
    max_completion_length: int
    kl: Callable[..., Tensor]
    kl_coef: float
    correct_kl: bool

    def terms(
        self,
        tokens: PolicyTokens,
        *,
        ref_logps: Float[Tensor, "N T"] | None,
        keep: Bool[Tensor, "N T1"] | None,
        entropy_coef: float | None,
    ) -> tuple[tuple[Term, ...], dict[str, Mean]]:
        """The terms of a micro-batch, unreduced, and the metrics of the loss.

        Args:
            tokens: without a ratio; it is chosen here.
            ref_logps: of the reference, or None.
            keep: where False the policy loss is 0, and still counted.
            entropy_coef: factor of the entropy bonus, or None for no bonus.
        """
        result = apply_policy_loss(self.entry, tokens, importance_sampling_level=self.level, keep=keep)
        terms = [self._term("policy", result.losses, tokens)]
        metrics = {name: mean_of_tokens(values, tokens.mask) for name, values in result.metrics.items()}
        if ref_logps is not None:
            log_ratio = with_ratio(tokens, "token").log_ratio if self.correct_kl else None
            metrics["kl"] = mean_of_tokens(self.kl(tokens.logps.detach(), ref_logps), tokens.mask)
            if self.kl_coef:
                losses = kl_loss(tokens.logps, ref_logps, estimator=self.kl, log_ratio=log_ratio)
                terms.append(self._term("kl", losses, tokens, coefficient=self.kl_coef))
        if entropy_coef is not None:
            assert tokens.entropy is not None
            terms.append(entropy_bonus(tokens.entropy, coefficient=entropy_coef, keep=keep))
        return tuple(terms), metrics

    def _term(self, name: str, losses: Tensor, tokens: PolicyTokens, coefficient: float = 1.0) -> Term:
        reduced, per = reduce_tokens(
            losses,
            tokens.mask,
            aggregation=self.entry.facts["aggregation"],
            max_completion_length=self.max_completion_length,
        )
        return Term(name=name, losses=reduced, per=per, coefficient=coefficient)


def bind_objective(config: PolicyLossOptions, *, kl_coef: float, correct_kl: bool, kl: Any) -> PolicyObjective:
    """The objective that a configuration names, called once on made-up tokens.

    Raises:
        ValueError: an unknown loss or estimator, an option that the loss does not read, a ratio that it does not work
            with, or a loss whose result has another shape than its tokens.
    """
    (entry,) = policy_losses.bind([config.loss_type], config, config.loss_kwargs)
    assert config.max_completion_length is not None
    check_policy_loss(entry, config.importance_sampling_level)
    return PolicyObjective(
        entry=entry,
        level=ratio_level(entry, config.importance_sampling_level),
        max_completion_length=config.max_completion_length,
        kl=kl_estimators.entry(kl).function,
        kl_coef=kl_coef,
        correct_kl=correct_kl,
    )


def policy_tokens(stats: TokenStats, batch: RolloutBatch) -> PolicyTokens:
    """What a policy loss sees of a micro-batch. Without `old_logps` the old policy is this one, and the ratio 1."""
    return PolicyTokens(
        logps=stats.logps,
        old_logps=stats.logps.detach() if batch.old_logps is None else batch.old_logps,
        advantages=batch.advantages,
        mask=stats.mask,
        sampler_logps=batch.sampler_logps,
        importance_weights=batch.importance_weights,
        entropy=stats.entropy,
    )
