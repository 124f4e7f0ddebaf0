"""Supervised fine-tuning: the policy learns to say what the rows say.

    rows -> TokenBatch -> forward -> loss of each trained token -> division

Trained are the answers alone: the completion behind its prompt, or the assistant's turns of a conversation; of plain
text everything. The loss is a mean over all trained tokens of the optimizer step, on all processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from burnish.compat import UNBUILT_SFT, UNBUILT_SFT_ARGUMENTS, accept_trl_fields, refuse_unbuilt
from burnish.data.kinds import SUPERVISED
from burnish.losses import supervised_losses
from burnish.losses.auxiliary import load_balancing
from burnish.models.forward import forward
from burnish.models.introspect import router_aux_loss_coef
from burnish.trainers.answer_losses import bind_loss, describe_loss
from burnish.trainers.base import PolicyTrainer
from burnish.trainers.config import PolicyConfig, arg
from burnish.trainers.selfcheck import check_logps
from burnish.types import LossOutput, Mean, Term, TokenBatch, TokenStats

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


@accept_trl_fields(UNBUILT_SFT)
@dataclass
class SFTConfig(PolicyConfig):
    """Options of `SFTTrainer`, on top of `PolicyConfig`."""

    learning_rate: float = arg(2e-5, "Peak learning rate.")
    disable_dropout: bool = arg(False, "Set every dropout of the policy to 0.")
    loss_type: str = arg("nll", "Name of a supervised loss, or a callable.")  # text, for HfArgumentParser
    loss_kwargs: dict[str, Any] | None = arg(None, "Hyper-parameters of the loss that are no options of their own.")
    completion_only_loss: bool | None = arg(
        None, "Of prompt and completion train the completion alone. Unset: true; false trains the prompt too."
    )
    assistant_only_loss: bool | None = arg(
        None, "Of messages train the assistant's turns alone. Unset: true; false trains every turn."
    )
    router_aux_loss_coef: float | None = arg(
        None, "Factor of a mixture of experts' load-balancing loss; 0 leaves it out. Unset: the model's own."
    )

    row_kind = SUPERVISED

    @property
    def whole_rows(self) -> frozenset[str]:
        """What `completion_only_loss` and `assistant_only_loss` say."""
        switches = {
            ("completion", "chosen"): self.completion_only_loss,
            ("messages", "conversations"): self.assistant_only_loss,
        }
        return frozenset(column for columns, only in switches.items() if only is False for column in columns)


class SFTTrainer(PolicyTrainer):
    """Supervised fine-tuning.

    Arguments as in `PolicyTrainer`; `burnish.data.answers` says what rows are accepted.
    """

    config_class = SFTConfig
    loss_table = supervised_losses
    args: SFTConfig

    def __init__(self, model: str | PreTrainedModel | PeftModel, args: SFTConfig | None = None, **kwargs: Any) -> None:
        for name in UNBUILT_SFT_ARGUMENTS.keys() & kwargs.keys():
            refuse_unbuilt(name, kwargs.pop(name), UNBUILT_SFT_ARGUMENTS)
        options = self.checked_args(args)
        self.token_loss = bind_loss(supervised_losses, options, -torch.ones(2, 3), shape=(2, 3))
        super().__init__(model, options, **kwargs)
        self.aux_loss_coef = router_aux_loss_coef(self.model, options.router_aux_loss_coef)
        self.needs = {"entropy", "top1", *(["aux_loss"] if self.aux_loss_coef > 0 else [])}

    def loss(self, model: nn.Module, batch: TokenBatch) -> LossOutput:
        """Terms and metrics of one micro-batch."""
        stats = forward(model, batch, needs=self.needs)
        term = Term(name=self.token_loss.name, losses=self.token_loss.function(stats.logps), per="token")
        terms = (term, *load_balancing(stats, coefficient=self.aux_loss_coef))
        return LossOutput(terms=terms, metrics=self._metrics(stats, batch))

    def _metrics(self, stats: TokenStats, batch: TokenBatch) -> dict[str, Mean]:
        tokens = batch.unit_weights("token")  # (N, T)
        metrics = {
            "entropy": Mean.of(stats.required_entropy, weight=tokens),
            "mean_token_accuracy": Mean.of(stats.extra["top1"], weight=tokens),
        }
        if "truncated" in batch.columns:
            metrics["truncated"] = Mean.of(batch.columns["truncated"], weight=batch.unit_weights("row"))
        return metrics

    def describe_method(self) -> dict[str, Any]:
        """As in `PolicyTrainer`, with the loss."""
        return {**super().describe_method(), "losses": describe_loss(self.token_loss)}

    def check_first_step(self, batch: TokenBatch) -> dict[str, Any]:
        """Score the first rows again, row by row through the model's own logits, and compare."""
        return check_logps(self, batch)
