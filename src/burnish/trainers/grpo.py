"""GRPO and its family: groups of answers to a prompt, compared with each other.

    prompts -> _generate_and_score_completions -> RolloutBatch -> queue
    RolloutBatch -> _get_per_token_logps_and_entropies -> PolicyTokens -> policy loss, KL, entropy -> _compute_loss

The methods carry the names that readers of TRL look for; each is on the path, and overriding it changes the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.compat import (
    GRPO_ALIASES,
    UNBUILT_GRPO,
    UNBUILT_GRPO_ARGUMENTS,
    UNSET_BY_NONE,
    accept_trl_fields,
    refuse_unbuilt,
)
from burnish.losses.auxiliary import load_balancing
from burnish.losses.kl import with_kl_penalty
from burnish.models.forward import forward
from burnish.models.introspect import router_aux_loss_coef
from burnish.models.reference import ModelReference
from burnish.runtime.controllers import AdaptiveEntropy
from burnish.runtime.state import Stateful
from burnish.trainers.config import arg
from burnish.trainers.online import OnlineTrainer
from burnish.trainers.policy_options import PolicyLossOptions
from burnish.trainers.policy_terms import bind_objective, policy_tokens
from burnish.trainers.reference_options import ReferenceOptions, choose_reference
from burnish.trainers.rescoring import Rescoring, mean_of_tokens
from burnish.trainers.selfcheck import check_on_policy
from burnish.types import LossOutput, RewardTable, RolloutBatch, TokenBatch, TokenStats

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


FOLLOWED_ENTROPY = ("entropy", 0.0)  # the mean over the last step


@accept_trl_fields(UNBUILT_GRPO, aliases=GRPO_ALIASES, unset_by_none=UNSET_BY_NONE)
@dataclass
class GRPOConfig(PolicyLossOptions, ReferenceOptions):
    """Options of `GRPOTrainer`, on top of `OnlineConfig`, `PolicyLossOptions` and `ReferenceOptions`."""

    beta: float = arg(0.0, "Strength of the pull to the reference; 0: no reference is loaded.")
    kl_estimator: str = arg("k3", "Estimator of the KL to the reference: k1, k2, k3 or abs.")
    use_kl_in_reward: bool = arg(False, "Take the KL off the rewards, instead of adding it to the loss.")
    use_bias_correction_kl: bool = arg(
        True, "Multiply the KL in the loss by the ratio of policy to old policy, which makes its gradient right."
    )
    advantage: str = arg("group", "How rewards become advantages: group, rloo, gdpo, reinforce_pp, …")
    scale_rewards: Any = arg("group", "What advantages are divided by: the std of the group or the batch, or none.")
    multi_objective_aggregation: str = arg(
        "sum_then_normalize", "normalize_then_sum normalises each reward function by itself: the advantage gdpo."
    )
    router_aux_loss_coef: float | None = arg(
        None, "Factor of a mixture of experts' load-balancing loss; 0 leaves it out. Unset: the model's own."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise ValueError(f"beta={self.beta!r}; allowed: 0 or more")
        if self.multi_objective_aggregation not in ("sum_then_normalize", "normalize_then_sum"):
            raise ValueError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r}; allowed: sum_then_normalize, "
                "normalize_then_sum"
            )
        if self.multi_objective_aggregation == "normalize_then_sum":
            if self.advantage not in ("group", "gdpo"):
                raise ValueError(
                    f"multi_objective_aggregation='normalize_then_sum' is the advantage 'gdpo', and advantage="
                    f"{self.advantage!r} is another one: set one of them"
                )
            self.advantage = "gdpo"


class GRPOTrainer(OnlineTrainer):
    """Group-relative policy optimisation.

    Arguments as in `OnlineTrainer`, and:

    Args:
        ref_model: the reference policy, a model or a name; with `beta` above 0 and None, a frozen copy of the policy,
            taken now.

    Source: Shao et al., "DeepSeekMath" (2402.03300).
    """

    config_class = GRPOConfig
    args: GRPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *,
        ref_model: str | PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        for name in kwargs.keys() & UNBUILT_GRPO_ARGUMENTS:
            refuse_unbuilt(name, kwargs.pop(name), UNBUILT_GRPO_ARGUMENTS)
        options = self.checked_args(args)
        self.objective = bind_objective(
            options,
            kl_coef=0.0 if options.use_kl_in_reward else options.beta,
            correct_kl=options.use_bias_correction_kl,
            kl=options.kl_estimator,
        )
        self.rescoring = Rescoring.of(options, self.objective.entry, need_old=options.use_kl_in_reward)
        self.entropy_control = entropy_control(options)
        self.follows = frozenset({FOLLOWED_ENTROPY}) if self.entropy_control else frozenset()
        super().__init__(model, reward_funcs, options, **kwargs)
        if ref_model is not None and not options.beta:
            raise ValueError("ref_model is given, and beta=0 compares with no reference: set beta, or leave it out")
        self.aux_loss_coef = router_aux_loss_coef(self.model, options.router_aux_loss_coef)
        self.needs = self._needs()
        self.reference = choose_reference(
            self.model, ref_model, options, need_reference=options.beta > 0, has_new_adapter=self.has_new_adapter
        )

    def _needs(self) -> frozenset[str]:
        """What the policy's forward computes beside log-probs."""
        own: frozenset[str] = self.objective.entry.facts["needs"]
        return own | {"entropy"} | ({"aux_loss"} if self.aux_loss_coef > 0 else frozenset())

    def advantage_choice(self, options: GRPOConfig) -> str:
        """The option `advantage`."""
        return options.advantage

    def _get_per_token_logps_and_entropies(self, model: nn.Module, batch: RolloutBatch) -> TokenStats:
        """The policy's log-probs and entropies of the answers' tokens, (N, T), at the temperature of the draw."""
        return forward(model, batch, needs=self.needs, temperature=batch.temperature)

    def _rescore(self, batch: RolloutBatch) -> RolloutBatch:
        reference = self.reference if isinstance(self.reference, ModelReference) else None
        policy = self.accelerator.unwrap_model(self.model)
        with self.accelerator.autocast():
            scored, metrics = self.rescoring(batch, policy=policy, reference=reference)
        self.metric_buffer.add(metrics)
        return scored

    def _shape_rewards(self, rewards: RewardTable, batch: RolloutBatch) -> RewardTable:
        if not self.args.use_kl_in_reward:
            return rewards
        assert batch.old_logps is not None
        assert batch.ref_logps is not None
        kl = self.objective.kl(batch.old_logps, batch.ref_logps).cpu()
        return with_kl_penalty(rewards, kl, batch.loss_mask.cpu(), coefficient=self.args.beta)

    def _compute_loss(self, model: nn.Module, batch: RolloutBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        stats = self._get_per_token_logps_and_entropies(model, batch)
        tokens = policy_tokens(stats, batch)
        keep = self.rescoring.kept(tokens, batch)
        terms, metrics = self.objective.terms(
            tokens, ref_logps=batch.ref_logps, keep=keep, entropy_coef=self.entropy_coef
        )
        metrics["entropy"] = mean_of_tokens(stats.required_entropy, stats.mask)
        if batch.sampler_logps is not None and batch.old_logps is None:
            gap = (tokens.old_logps - batch.sampler_logps).abs()
            metrics["sampling/sampling_logp_difference/mean"] = mean_of_tokens(gap, stats.mask)
        return LossOutput(terms=terms + load_balancing(stats, coefficient=self.aux_loss_coef), metrics=metrics)

    def loss(self, model: nn.Module, batch: RolloutBatch) -> LossOutput:
        """`_compute_loss`."""
        return self._compute_loss(model, batch)

    def describe_method(self) -> dict[str, Any]:
        """As in `PolicyTrainer`, with the loss and the advantage."""
        rows = [self.objective.entry, self.credit_entry]
        parts = [{"name": row.name, "paper": row.paper, "weight": 1.0} for row in rows]
        return {**super().describe_method(), "losses": parts}

    @property
    def entropy_coef(self) -> float | None:
        """The factor of the entropy bonus in this step, or None for no bonus."""
        if self.entropy_control is not None:
            return self.entropy_control.coefficient
        return self.args.entropy_coef or None

    def prepare_step(self, model: nn.Module, parcels: Sequence[TokenBatch]) -> list[TokenBatch]:
        """Move the entropy's coefficient by the entropy of the step before."""
        del model
        if self.entropy_control is not None and self.state.global_step > 0:
            self.entropy_control.update(float(self.running_means.value(*FOLLOWED_ENTROPY)))
        if self.entropy_control is not None:
            self.metric_buffer.add({"entropy_coef": self.of_round(self.entropy_control.coefficient)})
        return list(parcels)

    def follow_policy(self) -> None:
        """After each optimizer step: a moving reference moves."""
        self.reference.follow(self.accelerator.unwrap_model(self.model), step=self.state.global_step)

    def stateful(self) -> dict[str, Stateful]:
        """As in `OnlineTrainer`, and a reference that moves, and the entropy's controller."""
        own = {"reference": self.reference, "entropy_control": self.entropy_control}
        return {**super().stateful(), **{name: item for name, item in own.items() if isinstance(item, Stateful)}}

    def check_first_step(self, batch: RolloutBatch) -> dict[str, Any]:
        """Score a few answers again, row by row through the model's own logits: the ratio must be 1, and the KL 0."""
        return check_on_policy(self, batch)

    def binding(self) -> dict[str, Any]:
        """A resumed run must have the same reference and the same reward functions."""
        return {"reference": self.reference.fingerprint(), "reward_funcs": list(self.scorer.names)}


def entropy_control(options: PolicyLossOptions) -> AdaptiveEntropy | None:
    """The controller of the entropy's coefficient that the options ask for."""
    if not options.use_adaptive_entropy:
        return None
    return AdaptiveEntropy(
        initial=options.entropy_coef,
        smallest=options.entropy_coef_min,
        largest=options.entropy_coef_max,
        delta=options.entropy_coef_delta,
        target=options.entropy_target,
    )
