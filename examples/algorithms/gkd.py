"""GKD: the student answers itself, and learns at every token what the teacher would have said there.

loss = D(teacher, student) of the next-token distributions, at each token of the student's own answers

D is KL(teacher || student) at interpolation 0, KL(student || teacher) at 1, between them the generalised Jensen-Shannon
divergence (the paper's beta). The teacher is `ref_model`; rewards are not trained on, they measure.

Source: Agarwal et al., "On-Policy Distillation of Language Models" (2306.13649) eq. 1 and algorithm 1, lambda 1.
"""

from dataclasses import dataclass, replace

import torch

from burnish import LossOutput, OnlineConfig, OnlineTrainer, RolloutBatch, arg, forward


@dataclass
class GKDConfig(OnlineConfig):
    """Options of `GKDTrainer`, on top of `OnlineConfig`."""

    interpolation: float = arg(0.5, "0 covers what the teacher may say, 1 says nothing that it would not.")


class GKDTrainer(OnlineTrainer):
    """Generalised knowledge distillation on the student's own answers."""

    config_class = GKDConfig
    args: GKDConfig
    reads_reference = True
    learns_from_rewards = False

    def loss(self, model: torch.nn.Module, batch: RolloutBatch) -> LossOutput:
        """The divergence at each token."""
        teacher = replace(self.compute_teacher(batch), interpolation=self.args.interpolation)
        stats = forward(model, batch, needs={"divergence"}, teacher=teacher)
        return LossOutput.of(stats.extra["divergence"], per="token")
