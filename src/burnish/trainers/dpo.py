"""DPO and its family: six rooms, no way back.

    rows -> PreferenceBatch -> concatenated_forward -> PairLogps -> dpo_loss -> get_batch_loss_metrics -> division

The methods carry the names that readers of TRL look for; each is on the path, and overriding it changes the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from burnish.compat import UNBUILT_DPO, accept_trl_fields
from burnish.losses.auxiliary import load_balancing
from burnish.losses.pairing import pair_logps, wpo_weights
from burnish.losses.preference import preference_losses
from burnish.models.forward import forward
from burnish.models.introspect import router_aux_loss_coef
from burnish.trainers import pair_metrics
from burnish.trainers.config import arg
from burnish.trainers.coupling import couple
from burnish.trainers.pair_losses import bind_losses, check_losses
from burnish.trainers.reference_options import ReferenceOptions, make_reference
from burnish.trainers.referring import ReferringTrainer
from burnish.trainers.sampling import SamplingMixin
from burnish.trainers.sampling_options import SamplingOptions
from burnish.trainers.selfcheck import check_dpo
from burnish.types import LossOutput, Mean, PairLogps, PreferenceBatch, Term, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Float
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from burnish.models.divergence import Teacher
    from burnish.models.reference import ModelReference


@accept_trl_fields(UNBUILT_DPO)
@dataclass
class DPOConfig(ReferenceOptions, SamplingOptions):
    """Options of `DPOTrainer`, on top of `PolicyConfig`, `ReferenceOptions` and `SamplingOptions`."""

    loss_type: Any = arg(["sigmoid"], "Name of a preference loss, a callable, or a list of them.")
    loss_weights: list[float] | None = arg(None, "Factor of each loss in the sum; 1 each if unset.")
    loss_kwargs: dict[str, Any] | None = arg(None, "Hyper-parameters of the losses that are no options of their own.")
    beta: float = arg(0.1, "Strength of the pull to the reference; higher stays closer. For ipo, the paper's tau.")
    label_smoothing: float = arg(0.0, "Probability that a preference label is wrong, in [0, 0.5).")
    f_divergence_type: str = arg("reverse_kl", "Divergence whose score takes the place of the log-ratio.")
    f_alpha_divergence_coef: float = arg(0.5, "Alpha of alpha_divergence: 0 is the forward, 1 the reverse KL.")
    discopop_tau: float = arg(0.05, "Temperature of the mixture in discopop.")
    rpo_alpha: float | None = arg(None, "Add the chosen answer's negative log-likelihood (loss sft) with this factor.")
    use_weighting: bool = arg(False, "Weight each pair by how likely the policy itself is to answer so (WPO).")
    ld_alpha: float | None = arg(
        None, "Weight of the tokens of an answer beyond the other's length, in [0, 1] (LD-DPO)."
    )
    router_aux_loss_coef: float | None = arg(
        None, "Factor of a mixture of experts' load-balancing loss; 0 leaves it out. Unset: the model's own."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss_type = list(self.loss_type) if isinstance(self.loss_type, list | tuple) else [self.loss_type]
        check_losses(self.loss_type, self.loss_weights)


class DPOTrainer(SamplingMixin, ReferringTrainer):
    """Direct preference optimisation.

    Arguments as in `PolicyTrainer`, and:

    Args:
        ref_model: the reference policy, a model, a name, or a `ModelReference`. If None: the data set's
            `ref_chosen_logps` and `ref_rejected_logps` where it has them; the policy without its new adapter, or a copy
            of the adapter that it came with; else a frozen copy of the policy, taken now. Losses that read no reference
            have none.

    Source: Rafailov et al., "Direct Preference Optimization" (2305.18290).
    """

    config_class = DPOConfig
    loss_table = preference_losses
    args: DPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: DPOConfig | None = None,
        *,
        ref_model: str | PreTrainedModel | PeftModel | ModelReference | None = None,
        **kwargs: Any,
    ) -> None:
        options = self.checked_args(args)
        self.losses = bind_losses(options)
        self.couples_rows, self.follows = self.losses.couple_rows, self.losses.follows
        self.model_adapter_name = options.model_adapter_name
        super().__init__(model, options, **kwargs)
        self.aux_loss_coef = router_aux_loss_coef(self.model, options.router_aux_loss_coef)
        self.needs = self._needs()
        self.needs_ref_tokens = options.ld_alpha is not None
        self.reference = make_reference(
            self, ref_model, need_reference=self.losses.need_reference, needs=self.losses.needs
        )
        self.prepare_sampling()

    def _needs(self) -> frozenset[str]:
        """What the policy's forward computes beside log-probs: for the losses, for WPO, for metrics."""
        optional = {"sum_p2": self.args.use_weighting, "aux_loss": self.aux_loss_coef > 0}
        return self.losses.needs | pair_metrics.NEEDS | {name for name, wanted in optional.items() if wanted}

    def concatenated_forward(self, model: nn.Module, batch: PreferenceBatch) -> TokenStats:
        """The policy's log-probs of chosen and rejected rows, (N, T), in one forward."""
        teacher = self.compute_teacher(batch) if "divergence" in self.needs else None
        return forward(model, batch, needs=self.needs, teacher=teacher)

    def compute_teacher(self, batch: PreferenceBatch) -> Teacher:
        """The reference's hidden states and head, for losses that read the divergence from it."""
        with torch.no_grad(), self.accelerator.autocast():
            return self.reference.teacher(batch)

    def dpo_loss(self, pair: PairLogps, batch: PreferenceBatch) -> tuple[Term, ...]:
        """One term for each loss: (M,), unreduced."""
        return self.losses.terms(pair, batch, self.running_means)

    def get_batch_loss_metrics(self, model: nn.Module, batch: PreferenceBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        stats = self.concatenated_forward(model, batch)
        ref_logps = self.compute_ref_log_probs(batch)
        weight = wpo_weights(stats, batch) if self.args.use_weighting else None
        pair = replace(pair_logps(stats, ref_logps, batch, ld_alpha=self.args.ld_alpha), weight=weight)
        terms = self.dpo_loss(pair, batch) + load_balancing(stats, coefficient=self.aux_loss_coef)
        return LossOutput(terms=terms, metrics=self._metrics(pair, stats, ref_logps, batch))

    def loss(self, model: nn.Module, batch: PreferenceBatch) -> LossOutput:
        """`get_batch_loss_metrics`."""
        return self.get_batch_loss_metrics(model, batch)

    def _metrics(
        self, pair: PairLogps, stats: TokenStats, ref_logps: Float[Tensor, "N T1"], batch: PreferenceBatch
    ) -> dict[str, Mean]:
        of_pairs = pair_metrics.pair_metrics(
            pair, batch, beta=self.args.beta, reward=self.losses.reward, sources=self.source_names
        )
        return {**of_pairs, **pair_metrics.token_metrics(stats, ref_logps, batch)}

    def prepare_step(self, model: nn.Module, parcels: Sequence[PreferenceBatch]) -> list[PreferenceBatch]:
        """Give each parcel its part of the losses that couple rows; nothing to do for the others."""
        if not self.couples_rows:
            return list(parcels)
        with torch.no_grad():
            pairs = [self.score_pairs(model, batch) for batch in parcels]
        return couple(parcels, pairs, self.losses.step_wide(self.running_means))

    def score_pairs(self, model: nn.Module, batch: PreferenceBatch) -> PairLogps:
        """Log-probs of a parcel's pairs under policy and reference, and nothing else."""
        return pair_logps(forward(model, batch), self.compute_ref_log_probs(batch), batch, ld_alpha=self.args.ld_alpha)

    def describe_method(self) -> dict[str, Any]:
        """As in `PolicyTrainer`, with the losses and the divergence."""
        return {**super().describe_method(), "losses": self.losses.describe()}

    def check_first_step(self, batch: PreferenceBatch) -> dict[str, Any]:
        """Score one pair again, row by row through the model's own logits, and compare; the loss should be log 2."""
        return check_dpo(self, batch)
