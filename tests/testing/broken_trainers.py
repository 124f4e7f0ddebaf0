"""Trainers that each break one law, in a module of their own so that other processes can import them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid, softplus

from burnish import (
    DPOTrainer,
    LossOutput,
    Mean,
    OnlineConfig,
    OnlineTrainer,
    PolicyConfig,
    PolicyTrainer,
    PreferenceBatch,
    RolloutBatch,
    arg,
    forward,
)


@dataclass
class LeadConfig(PolicyConfig):
    """Options of LeadTrainer."""

    beta: float = arg(2.0, "Factor of the lead.")


class LeadTrainer(PolicyTrainer):
    """A sound one: -log sigmoid of the lead of the mean log-prob."""

    config_class = LeadConfig
    args: LeadConfig

    def lead(self, model: Any, batch: PreferenceBatch) -> torch.Tensor:
        """How far chosen is ahead, (M,)."""
        chosen, rejected = forward(model, batch).sequence_mean()[batch.pairs].unbind(-1)
        return self.args.beta * (chosen - rejected)

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """One term a pair."""
        lead = self.lead(model, batch)
        return LossOutput.of(-logsigmoid(lead), per="pair", metrics={"rewards/accuracies": Mean.of(lead > 0)})


class MeanOfMicroBatch(LeadTrainer):
    """A mean over the micro-batch, given to every pair as if it were its own."""

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """The mean, once a pair: the step's weight of a micro-batch is right, and its tokens' is not."""
        stats = forward(model, batch)
        losses = -stats.logps.sum() / stats.mask.sum()
        return LossOutput.of(losses.expand(len(batch.pairs)), per="pair")


class ReadsPadding(LeadTrainer):
    """Log-probs weighted by how wide the parcel is, padding included."""

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """Divided by the width."""
        return LossOutput.of(-logsigmoid(self.lead(model, batch)) / batch.completion_ids.shape[1], per="pair")


class ReadsOrder(LeadTrainer):
    """The first pair counts more."""

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """Weights by place."""
        losses = -logsigmoid(self.lead(model, batch))
        return LossOutput.of(losses * torch.arange(1, len(losses) + 1), per="pair")


class Detached(LeadTrainer):
    """Nothing reaches the policy."""

    def lead(self, model: Any, batch: PreferenceBatch) -> torch.Tensor:
        """Without gradient; a parameter is kept in it, times 0, so that a backward is possible."""
        anchor = sum(p.sum() for p in model.parameters())
        return super().lead(model, batch).detach() + 0 * anchor


class Turned(LeadTrainer):
    """Prefers what was rejected."""

    def lead(self, model: Any, batch: PreferenceBatch) -> torch.Tensor:
        """The wrong way round."""
        return -super().lead(model, batch)


class Overflows(LeadTrainer):
    """An exponential that nothing bounds."""

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """exp of the negative lead, of sums."""
        chosen, rejected = forward(model, batch).sequence_sum()[batch.pairs].unbind(-1)
        return LossOutput.of(torch.exp(3 * (rejected - chosen)), per="pair")


class Uphill(LeadTrainer):
    """The gradient of something else than the value."""

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """The value grows where the gradient says that it falls."""
        lead = self.lead(model, batch)
        return LossOutput.of(softplus(lead).detach() - lead + lead.detach(), per="pair")


class Forgetful(LeadTrainer):
    """A running mean that no checkpoint has."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.seen = 0.0

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """Compared with the mean lead of the steps before."""
        return LossOutput.of(-logsigmoid(self.lead(model, batch) - self.seen), per="pair")

    def follow_policy(self) -> None:
        """Move the mean."""
        self.seen = 0.9 * self.seen + 0.1 * float(self.state.global_step)


class ReadsTheLog(LeadTrainer):
    """A coefficient that moves when a line is logged."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.factor = 1.0

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """Times the factor."""
        return LossOutput.of(-logsigmoid(self.factor * self.lead(model, batch)), per="pair")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Move the factor."""
        self.factor *= 1.5
        super().log(logs, start_time)


class OwnRank(LeadTrainer):
    """Each process has a coefficient of its own."""

    def loss(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """Times the number of the process."""
        return LossOutput.of(-logsigmoid(self.lead(model, batch)) * (1 + self.args.process_index), per="pair")


class WholeGroups(DPOTrainer):
    """Parts under a token budget see a term of the whole micro-batch."""

    def get_batch_loss_metrics(self, model: Any, batch: PreferenceBatch) -> LossOutput:
        """Each part counts the same, however many pairs it has."""
        found = super().get_batch_loss_metrics(model, batch)
        share = len(batch.pairs) / self.args.per_device_train_batch_size
        terms = tuple(type(term)(name=term.name, losses=term.losses * share, per=term.per) for term in found.terms)
        return LossOutput(terms=terms, metrics=found.metrics)


class Reinforce(OnlineTrainer):
    """A sound one: log-prob times advantage."""

    config_class = OnlineConfig

    def loss(self, model: Any, batch: RolloutBatch) -> LossOutput:
        """-A log p, a token."""
        stats = forward(model, batch, temperature=batch.temperature)
        return LossOutput.of(-batch.advantages * stats.logps, per="token")


class ReinforceTurned(Reinforce):
    """Bad answers become likelier."""

    def loss(self, model: Any, batch: RolloutBatch) -> LossOutput:
        """A log p."""
        stats = forward(model, batch, temperature=batch.temperature)
        return LossOutput.of(batch.advantages * stats.logps, per="token")


class ReinforceOfRow(Reinforce):
    """The mean over the tokens of the micro-batch, a row."""

    def loss(self, model: Any, batch: RolloutBatch) -> LossOutput:
        """The same number for every row."""
        stats = forward(model, batch, temperature=batch.temperature)
        mean = -(batch.advantages * stats.logps).sum() / stats.mask.sum()
        return LossOutput.of(mean.expand(len(batch)), per="row")
