"""KTO: answers that were each judged by itself, desirable or not; no pairs are needed.

    rows -> PreferenceBatch -> reference point of the step -> forward -> JudgedLogps -> loss of each answer -> division

Each row has, beside its own answers, some to another prompt (`burnish.data.mismatch`). Before a step, policy and
reference score these without gradient; their mean log-ratio over the whole step and all processes, at least 0, is the
reference point z that desirable answers are to gain on. Then they are left out, and the step is one as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset

from burnish.compat import UNBUILT_KTO, accept_trl_fields
from burnish.data.kinds import JUDGED
from burnish.data.lint import Finding, lint_labels
from burnish.data.mismatch import with_mismatched
from burnish.losses import unpaired_losses
from burnish.losses.auxiliary import load_balancing
from burnish.models.forward import forward
from burnish.models.introspect import router_aux_loss_coef
from burnish.runtime.distributed import sum_over_ranks
from burnish.trainers.answer_losses import bind_loss, describe_loss
from burnish.trainers.config import arg
from burnish.trainers.judged_metrics import NEEDS, judged_metrics
from burnish.trainers.reference_options import ReferenceOptions, make_reference
from burnish.trainers.referring import ReferringTrainer
from burnish.trainers.selfcheck import check_logps
from burnish.types import JudgedLogps, LossOutput, PreferenceBatch, Term, TokenStats, wide

if TYPE_CHECKING:
    from jaxtyping import Float
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

TWO = JudgedLogps(
    logps=-torch.ones(2), ref_logps=-torch.ones(2), is_desirable=torch.tensor([True, False]), kl=torch.ones(2)
)


@accept_trl_fields(UNBUILT_KTO)
@dataclass
class KTOConfig(ReferenceOptions):
    """Options of `KTOTrainer`, on top of `PolicyConfig` and `ReferenceOptions`."""

    loss_type: str = arg("kto", "Name of a single-answer loss, or a callable.")  # text, for HfArgumentParser
    loss_kwargs: dict[str, Any] | None = arg(None, "Hyper-parameters of the loss that are no options of their own.")
    beta: float = arg(0.1, "Strength of the pull to the reference; higher stays closer.")
    desirable_weight: float = arg(1.0, "Factor of the loss of desirable answers, where there are fewer of them.")
    undesirable_weight: float = arg(1.0, "Factor of the loss of undesirable answers, where there are fewer of them.")
    router_aux_loss_coef: float | None = arg(
        None, "Factor of a mixture of experts' load-balancing loss; 0 leaves it out. Unset: the model's own."
    )

    row_kind = JUDGED


class KTOTrainer(ReferringTrainer):
    """Kahneman-Tversky optimisation.

    Arguments as in `PolicyTrainer`, and:

    Args:
        train_dataset: rows of prompt, completion and label; or of prompt, chosen and rejected, each of which is two
            judged answers of one prompt.
        ref_model: the reference policy, a model or a name. If None: the policy without its new adapter, or a copy of
            the adapter that it came with; else a frozen copy of the policy, taken now.

    Source: Ethayarajh et al., "KTO" (2402.01306).
    """

    config_class = KTOConfig
    loss_table = unpaired_losses
    args: KTOConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: KTOConfig | None = None,
        *,
        ref_model: str | PreTrainedModel | PeftModel | None = None,
        **kwargs: Any,
    ) -> None:
        options = self.checked_args(args)
        self.answer_loss = bind_loss(unpaired_losses, options, TWO, shape=(2,))
        self.couples_rows = "kl" in self.answer_loss.facts["needs"]
        self.model_adapter_name = options.model_adapter_name
        super().__init__(model, options, **kwargs)
        self.aux_loss_coef = router_aux_loss_coef(self.model, options.router_aux_loss_coef)
        self.needs = NEEDS | ({"aux_loss"} if self.aux_loss_coef > 0 else set())
        self.reference = make_reference(self, ref_model)

    def _prepare_dataset(self, dataset: Any, name: str) -> Dataset:
        """As in `PolicyTrainer`; each row gets answers to another prompt, if the loss needs them."""
        rows = super()._prepare_dataset(dataset, name)
        if not self.couples_rows:
            return rows
        with self.args.main_process_first(desc=f"answers to other prompts for {name}"):
            return with_mismatched(rows, seed=self._data_seed, max_length=self.args.max_length, name=name)

    def _lint(self) -> list[Finding]:
        """As in `PolicyTrainer`, and whether desirable and undesirable answers are in balance."""
        found, rows = super()._lint(), self.train_dataset
        if not isinstance(rows, Dataset):
            return found
        weights = {name: vars(self.args)[name] for name in ("desirable_weight", "undesirable_weight")}
        return [*found, *lint_labels(rows, **weights)]

    def _check_stream(self, source: Any) -> Any:
        if self.couples_rows:
            raise ValueError(
                "train_dataset is a stream, and the loss needs answers to other prompts, which are drawn from all "
                "rows: load the rows, or choose loss_type apo_zero_unpaired"
            )
        return super()._check_stream(source)

    def prepare_step(self, model: nn.Module, parcels: Sequence[PreferenceBatch]) -> list[PreferenceBatch]:
        """Score the answers to other prompts, and give each parcel the reference point in their place."""
        if not self.couples_rows:
            return list(parcels)
        with torch.no_grad():
            sums = torch.stack([self.score_mismatched(model, batch) for batch in parcels]).sum(0)
        total, count = sum_over_ranks(sums)
        kl = (total / count.clamp(min=1)).clamp(min=0)
        return [_with_point(own_answers(batch), kl) for batch in parcels]

    def score_mismatched(self, model: nn.Module, batch: PreferenceBatch) -> Float[Tensor, "2"]:
        """Sum of the log-ratios of a parcel's answers to other prompts, and their number; 0 for a filler."""
        others = batch.take(batch.columns["mismatched"].nonzero()[:, 0])
        logps = forward(model, others).sequence_sum()  # (N,)
        logratio = wide(logps - self.compute_ref_log_probs(others).sum(1))
        keep = 0.0 if batch.is_filler else 1.0
        return keep * torch.stack([logratio.sum(), logratio.new_tensor(float(len(logratio)))])

    def loss(self, model: nn.Module, batch: PreferenceBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        stats = forward(model, batch, needs=self.needs)
        judged = self.judge(stats, batch)
        term = Term(name=self.answer_loss.name, losses=self.answer_loss.function(judged), per="row")
        terms = (term, *load_balancing(stats, coefficient=self.aux_loss_coef))
        return LossOutput(terms=terms, metrics=judged_metrics(judged, stats, batch, beta=self.args.beta))

    def judge(self, stats: TokenStats, batch: PreferenceBatch) -> JudgedLogps:
        """Log-probs of each answer under policy and reference, and how it was judged."""
        logps = stats.sequence_sum()  # (N,)
        return JudgedLogps(
            logps=logps,
            ref_logps=self.compute_ref_log_probs(batch).sum(1).to(logps.dtype),
            is_desirable=batch.columns["label"] > 0,
            kl=batch.columns["kl"].to(logps.dtype) if "kl" in batch.columns else None,
        )

    def describe_method(self) -> dict[str, Any]:
        """As in `PolicyTrainer`, with the loss."""
        return {**super().describe_method(), "losses": describe_loss(self.answer_loss)}

    def check_first_step(self, batch: PreferenceBatch) -> dict[str, Any]:
        """Score the first answers again, row by row through the model's own logits, and compare."""
        return check_logps(self, own_answers(batch))


def own_answers(batch: PreferenceBatch) -> PreferenceBatch:
    """The parcel without answers to other prompts."""
    if "mismatched" not in batch.columns:
        return batch
    return batch.take((~batch.columns["mismatched"]).nonzero()[:, 0])


def _with_point(batch: PreferenceBatch, kl: Float[Tensor, ""]) -> PreferenceBatch:
    return replace(batch, columns={**batch.columns, "kl": kl.expand(len(batch))})
