"""DPO and its family: six rooms, no way back.

    rows -> PreferenceBatch -> concatenated_forward -> PairLogps -> dpo_loss -> get_batch_loss_metrics -> division

The methods carry the names that readers of TRL look for; each is on the path, and overriding it changes the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from burnish.compat import UNBUILT_DPO, accept_trl_fields
from burnish.losses.preference import preference_losses
from burnish.models.forward import forward
from burnish.models.load import load_policy
from burnish.models.reference import FromColumns, Reference, frozen_copy, given_model
from burnish.runtime.distributed import gather_rows
from burnish.trainers.base import PolicyTrainer
from burnish.trainers.config import PolicyConfig, arg
from burnish.trainers.selfcheck import check_dpo
from burnish.types import LossOutput, Mean, PairLogps, PreferenceBatch, Term, TokenStats, wide

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel

PAIR_COLUMNS = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_length", "rejected_length")


@accept_trl_fields(UNBUILT_DPO)
@dataclass
class DPOConfig(PolicyConfig):
    """Options of `DPOTrainer`, on top of `PolicyConfig`."""

    loss_type: Any = arg(["sigmoid"], "Name of a preference loss, a callable, or a list of them.")
    loss_weights: list[float] | None = arg(None, "Factor of each loss in the sum; 1 each if unset.")
    loss_kwargs: dict[str, Any] | None = arg(None, "Hyper-parameters of the losses that are no options of their own.")
    beta: float = arg(0.1, "Strength of the pull to the reference; higher stays closer. For ipo, the paper's tau.")
    label_smoothing: float = arg(0.0, "Probability that a preference label is wrong, in [0, 0.5).")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.loss_type = list(self.loss_type) if isinstance(self.loss_type, list | tuple) else [self.loss_type]
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} losses {self.loss_type}: "
                "give one for each"
            )
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta!r}; allowed: above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={self.label_smoothing!r}; allowed: 0 up to, but not including, 0.5")


class DPOTrainer(PolicyTrainer):
    """Direct preference optimisation.

    Arguments as in `PolicyTrainer`, and:

    Args:
        ref_model: the reference policy, a model or a name. If None: the data set's `ref_chosen_logps` and
            `ref_rejected_logps` where it has them, else a frozen copy of the policy, taken now.

    Source: Rafailov et al., "Direct Preference Optimization" (2305.18290).
    """

    config_class = DPOConfig
    args: DPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: DPOConfig | None = None,
        *,
        ref_model: str | PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        if ref_model is not None and ref_model is model and not isinstance(model, str):
            raise ValueError(
                "ref_model is the policy itself, which is trained: leave it out, and a frozen copy is taken"
            )
        options = self.checked_args(args)
        self.losses = preference_losses.bind(
            options.loss_type,
            options,
            options.loss_kwargs,
            read_elsewhere=frozenset({"beta"}),  # by rewards/*
        )
        self.loss_weights = options.loss_weights or [1.0] * len(self.losses)
        self.couples_rows = any(entry.facts["couples_rows"] for entry in self.losses)
        super().__init__(model, options, **kwargs)
        self.reference = self._make_reference(ref_model)

    def _make_reference(self, ref_model: str | PreTrainedModel | None) -> Reference:
        columns = [] if self.train_dataset is None else self.train_dataset.column_names
        if ref_model is None and "ref_chosen_logps" in columns:
            return FromColumns()
        if ref_model is None:
            return frozen_copy(self.model)
        if "ref_chosen_logps" in columns:
            raise ValueError("ref_model is given, and the data set has ref_chosen_logps: leave out one of the two")
        reference = given_model(load_policy(ref_model, trust_remote_code=self.args.trust_remote_code))
        reference.model.to(self.args.device)
        return reference

    def concatenated_forward(self, model: nn.Module, batch: PreferenceBatch) -> TokenStats:
        """The policy's log-probs of chosen and rejected rows, (N, T), in one forward."""
        return forward(model, batch, needs=("entropy", "top1", "mean_logit"))

    @torch.no_grad()
    def compute_ref_log_probs(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        """The reference's summed log-prob of each row in nats."""
        with self.accelerator.autocast():
            return self.reference(batch)

    def dpo_loss(self, pair: PairLogps, batch: PreferenceBatch) -> tuple[Term, ...]:
        """One term for each loss: (M,), unreduced."""
        return tuple(
            Term(
                name=entry.name,
                losses=_coupled(entry.name, pair, batch) if entry.facts["couples_rows"] else entry.function(pair),
                per=entry.facts["per"],
                coefficient=weight,
            )
            for entry, weight in zip(self.losses, self.loss_weights, strict=True)
        )

    def get_batch_loss_metrics(self, model: nn.Module, batch: PreferenceBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        stats = self.concatenated_forward(model, batch)
        pair = self._pair(stats, batch)
        return LossOutput(terms=self.dpo_loss(pair, batch), metrics=self._metrics(pair, stats, batch))

    def loss(self, model: nn.Module, batch: PreferenceBatch) -> LossOutput:
        """`get_batch_loss_metrics`."""
        return self.get_batch_loss_metrics(model, batch)

    def _pair(self, stats: TokenStats, batch: PreferenceBatch) -> PairLogps:
        ref_logps = self.compute_ref_log_probs(batch).to(stats.logps.dtype)
        return PairLogps.from_rows(stats.sequence_sum(), ref_logps, stats.lengths, batch.pairs)

    def _metrics(self, pair: PairLogps, stats: TokenStats, batch: PreferenceBatch) -> dict[str, Mean]:
        weight, (first, second) = batch.unit_weights("pair"), batch.pairs.unbind(1)  # (M,) each
        mask = stats.mask * 1.0  # (N, T)
        chosen, rejected = self.args.beta * pair.chosen_logratio, self.args.beta * pair.rejected_logratio
        difference = chosen - rejected

        def over_pairs(values: Tensor) -> Mean:
            return Mean.of(values, weight=weight)

        def over_tokens(values: Tensor, rows: Tensor) -> Mean:
            return Mean.of(values[rows], weight=mask[rows] * weight[:, None])

        return {
            "rewards/chosen": over_pairs(chosen),
            "rewards/rejected": over_pairs(rejected),
            "rewards/margins": over_pairs(difference),
            "rewards/accuracies": over_pairs((difference > 0) + 0.5 * (difference == 0)),
            "logps/chosen": over_pairs(pair.chosen),
            "logps/rejected": over_pairs(pair.rejected),
            "logits/chosen": over_tokens(stats.extra["mean_logit"], first),
            "logits/rejected": over_tokens(stats.extra["mean_logit"], second),
            "entropy": over_tokens(stats.required_entropy, first) + over_tokens(stats.required_entropy, second),
            "mean_token_accuracy": over_tokens(stats.extra["top1"], first),
        }

    # Losses that couple rows: every pair of the step is scored first, then each parcel is trained on.

    def prepare_step(self, model: nn.Module, parcels: Sequence[PreferenceBatch]) -> list[PreferenceBatch]:
        """Give each parcel its part of the losses that couple rows; nothing to do for the others."""
        if not self.couples_rows:
            return list(parcels)
        with torch.no_grad():
            own = [_columns(self._pair(forward(model, batch), batch), batch) for batch in parcels]
        rows, start = gather_rows(torch.cat(own))  # (S, 6) pairs of the whole step
        parts = {
            entry.name: _value_and_gradient(entry.function, rows)
            for entry in self.losses
            if entry.facts["couples_rows"]
        }
        coupled: list[PreferenceBatch] = []
        for batch, mine in zip(parcels, own, strict=True):
            size = len(batch.pairs)
            part = {name: values.new_zeros(size, 3) for name, values in parts.items()}
            if len(mine):
                part = {name: values[start : start + size] for name, values in parts.items()}
                start += size
            coupled.append(replace(batch, coupled=part))
        return coupled

    def binding(self) -> dict[str, Any]:
        """A resumed run must have the same reference."""
        return {"reference": self.reference.fingerprint()}

    def check_first_step(self, batch: PreferenceBatch) -> dict[str, Any]:
        """Score one pair again, row by row through the model's own logits, and compare; the loss should be log 2."""
        return check_dpo(self, batch)


def _columns(pair: PairLogps, batch: PreferenceBatch) -> Float[Tensor, "M 6"]:
    if batch.weight is not None and not bool((batch.weight == 1).all()):
        raise ValueError(
            f"rows {batch.row_id.unique().tolist()}: a loss that couples rows cannot weight them: drop `weight`"
        )
    table = torch.stack([wide(getattr(pair, name)) for name in PAIR_COLUMNS], dim=1)
    return table[:0] if batch.is_filler else table


def _value_and_gradient(function: Callable[[PairLogps], Tensor], rows: Float[Tensor, "S 6"]) -> Float[Tensor, "S 3"]:
    """The loss at each position of the step, and the derivative of their sum by each pair's log-probs."""
    columns = dict(zip(PAIR_COLUMNS, rows.unbind(1), strict=True))
    chosen, rejected = (columns[name].detach().requires_grad_() for name in ("chosen", "rejected"))
    with torch.enable_grad():
        losses = function(PairLogps(**{**columns, "chosen": chosen, "rejected": rejected}))
        gradients = torch.autograd.grad(losses.sum(), (chosen, rejected))
    return torch.stack([losses.detach(), *gradients], dim=1)


def _coupled(name: str, pair: PairLogps, batch: PreferenceBatch) -> Float[Tensor, "M"]:
    """The step-wide loss as seen from one parcel: its values, and its gradient with respect to the parcel's rows."""
    value, by_chosen, by_rejected = batch.coupled[name].to(pair.chosen.dtype).unbind(1)  # (M,) each
    return (
        value
        + by_chosen * (pair.chosen - pair.chosen.detach())
        + by_rejected * (pair.rejected - pair.rejected.detach())
    )
