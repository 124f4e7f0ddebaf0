"""What GRPO and PPO have in common: a policy loss of the table, a reference, and an entropy that may be controlled.

    prompts -> _generate_and_score_completions -> RolloutBatch -> queue
    RolloutBatch -> _get_per_token_logps_and_entropies -> PolicyTokens -> policy loss, KL, entropy -> _compute_loss

The methods carry the names that readers of TRL look for; each is on the path, and overriding it changes the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.losses.auxiliary import load_balancing
from burnish.losses.policy import policy_losses
from burnish.models.forward import forward
from burnish.models.introspect import router_aux_loss_coef
from burnish.models.reference import ModelReference
from burnish.runtime.controllers import AdaptiveEntropy
from burnish.runtime.state import Stateful
from burnish.trainers.kept_forward import KeptForward
from burnish.trainers.online import OnlineTrainer
from burnish.trainers.policy_terms import bind_objective, policy_tokens
from burnish.trainers.rescoring import Rescoring, evaluated, mean_of_tokens
from burnish.trainers.selfcheck import check_on_policy
from burnish.types import LossOutput, Mean, PolicyTokens, RolloutBatch, Term, TokenBatch, TokenStats

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from burnish.trainers.policy_options import PolicyLossOptions

FOLLOWED_ENTROPY = ("entropy", 0.0)  # the mean over the last step


@dataclass(frozen=True, kw_only=True)
class KLUse:
    """What a trainer does with the KL to the reference.

    Attributes:
        option: what the coefficient is called.
        coefficient: 0: there is no reference.
        estimator: a name of the table, or a callable.
        in_reward: taken off the rewards, instead of added to the loss.
        correct: multiplied by the ratio in the loss.
    """

    option: str
    coefficient: float
    estimator: Any
    in_reward: bool
    correct: bool


class PolicyGradientTrainer(OnlineTrainer, ABC):
    """A policy that learns from its own answers by a loss of the table. Abstract: a subclass says what the KL is for.

    Arguments as in `OnlineTrainer`; the reference is there if the KL is used.
    """

    loss_table = policy_losses
    reads_reference = True
    args: Any
    first_policy_step: int = 0  # the policy rests before it

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: Any = None,
        **kwargs: Any,
    ) -> None:
        options = self.checked_args(args)
        self.kl_use = kl = self.kl_options(options)
        self.objective = bind_objective(
            options,
            kl_coef=0.0 if kl.in_reward else kl.coefficient,
            correct_kl=kl.correct,
            kl=kl.estimator,
        )
        self.rescoring = Rescoring.of(options, self.objective.entry, need_old=self.needs_old_logps(options))
        self.entropy_control, self.kept_forward = entropy_control(options), KeptForward()
        self.follows = self.followed(options)
        super().__init__(model, reward_funcs, options, **kwargs)
        self.aux_loss_coef = router_aux_loss_coef(self.policy, options.router_aux_loss_coef)
        self.needs = self._needs()

    @abstractmethod
    def kl_options(self, options: Any) -> KLUse:
        """What the options say about the KL."""

    @abstractmethod
    def objective_lines(self) -> list[str]:
        """How rewards become advantages, and what to watch, for a person."""

    def wants_reference(self, options: Any) -> bool:
        """Whether the KL is used."""
        del options
        return self.kl_use.coefficient > 0

    def why_no_reference(self) -> str:
        """The KL's coefficient is 0."""
        return f"{self.kl_use.option}=0 compares with no reference: set {self.kl_use.option}"

    def followed(self, options: Any) -> frozenset[tuple[str, float | None]]:
        """Metrics whose running means are read."""
        return frozenset({FOLLOWED_ENTROPY}) if options.use_adaptive_entropy else frozenset()

    def needs_old_logps(self, options: Any) -> bool:
        """Whether a round is scored by the policy that drew it, even if all of it is trained on in one step."""
        return self.kl_options(options).in_reward

    def _needs(self) -> frozenset[str]:
        """What the policy's forward computes beside log-probs."""
        own: frozenset[str] = self.objective.entry.facts["needs"]
        return own | {"entropy"} | ({"aux_loss"} if self.aux_loss_coef > 0 else frozenset())

    def _get_per_token_logps_and_entropies(self, model: nn.Module, batch: RolloutBatch) -> TokenStats:
        """The policy's log-probs and entropies of the answers' tokens, (N, T), at the temperature of the draw."""
        kept = self.kept_forward.take(batch)
        return kept or forward(model, batch, needs=self.needs, temperature=batch.temperature)

    def _rescore(self, batch: RolloutBatch) -> RolloutBatch:
        reference = self.reference if isinstance(self.reference, ModelReference) else None
        module, kept = self.accelerator.unwrap_model(self.model), self.kept_forward
        kept.drop()
        keeps = kept.keeps and self.trains_on_rescored

        def policy(parcel: RolloutBatch, needs: frozenset[str]) -> TokenStats:
            if keeps and kept.is_empty:
                return kept.run(module, parcel, self.needs | needs)
            return evaluated(module, parcel, needs)

        with self.accelerator.autocast():
            scored, metrics = self.rescoring(batch, policy=policy, reference=reference)
        self.metric_buffer.add(metrics)
        return scored

    def take_parcels(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> Sequence[TokenBatch]:
        """As in `OnlineTrainer`; a forward that was kept and not trained on is of a policy that has moved."""
        self.kept_forward.drop()
        return super().take_parcels(epoch_iterator, num_batches, device)

    @property
    def trains_on_rescored(self) -> bool:
        """Whether the forward of rescoring's first part is the one that training would run: nothing sets them apart."""
        is_bare = self.model_wrapped is self.accelerator.unwrap_model(self.model)
        return is_bare and self.args.disable_dropout and self.together.waits

    def _policy_tokens(self, stats: TokenStats, batch: RolloutBatch) -> PolicyTokens:
        """All that a policy loss sees of a micro-batch."""
        return policy_tokens(stats, batch)

    def _policy_terms(self, stats: TokenStats, batch: RolloutBatch) -> tuple[tuple[Term, ...], dict[str, Mean]]:
        """Policy loss, KL, entropy bonus and load balancing of one micro-batch, and their metrics."""
        tokens = self._policy_tokens(stats, batch)
        keep = self.rescoring.kept(tokens, batch)
        terms, metrics = self.objective.terms(
            tokens, ref_logps=batch.ref_logps, keep=keep, entropy_coef=self.entropy_coef
        )
        metrics["entropy"] = mean_of_tokens(stats.required_entropy, stats.mask)
        if batch.sampler_logps is not None and batch.old_logps is None:
            gap = (tokens.old_logps - batch.sampler_logps).abs()
            metrics["sampling/sampling_logp_difference/mean"] = mean_of_tokens(gap, stats.mask)
        return terms + load_balancing(stats, coefficient=self.aux_loss_coef), metrics

    def _compute_loss(self, model: nn.Module, batch: RolloutBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        terms, metrics = self._policy_terms(self._get_per_token_logps_and_entropies(model, batch), batch)
        return LossOutput(terms=terms, metrics=metrics)

    def loss(self, model: nn.Module, batch: RolloutBatch) -> LossOutput:
        """`_compute_loss`."""
        return self._compute_loss(model, batch)

    @property
    def entropy_coef(self) -> float | None:
        """The factor of the entropy bonus in this step, or None for no bonus."""
        if self.entropy_control is not None:
            return self.entropy_control.coefficient
        return self.args.entropy_coef or None

    def prepare_step(self, model: nn.Module, parcels: Sequence[TokenBatch]) -> list[TokenBatch]:
        """Move the entropy's coefficient by the entropy of the step before."""
        del model
        if self.entropy_control is not None and self.state.global_step > self.first_policy_step:
            self.entropy_control.update(float(self.running_means.value(*FOLLOWED_ENTROPY)))
        if self.entropy_control is not None:
            self.metric_buffer.add({"entropy_coef": self.of_round(self.entropy_control.coefficient)})
        return list(parcels)

    def stateful(self) -> dict[str, Stateful]:
        """As in `OnlineTrainer`, and the entropy's controller."""
        own = {} if self.entropy_control is None else {"entropy_control": self.entropy_control}
        return {**super().stateful(), **own}

    def check_first_step(self, batch: RolloutBatch) -> dict[str, Any]:
        """Score a few answers again, row by row through the model's own logits: the ratio must be 1, and the KL 0."""
        return check_on_policy(self, batch)


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
