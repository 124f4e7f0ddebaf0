"""Best-of-n distillation: of n answers to a prompt the best one is imitated, until one answer is as good as n were.

loss = -A l,   l = log-prob per token,   A = n for the best answer (shared by those that are equally good), else 0

That is the forward KL from the best-of-n distribution to the policy, up to a constant. A prompt whose answers are all
alike teaches nothing and is left out.

Source: BOND (2407.14622) section 4.1; RAFT (2304.06767).
"""

import torch
from torch import Tensor

from burnish import LossOutput, OnlineTrainer, RewardTable, RolloutBatch, forward


def best_of_group(rewards: RewardTable, prompt_index: Tensor) -> Tensor:
    """n for the best scored answer of each group, (N, 1); 0 for all of a group without a difference."""
    total = rewards.total()  # (N,)
    group = torch.where(prompt_index[:, None] == prompt_index, total, torch.nan)  # (N, N): rivals of each answer
    best, worst = group.nan_to_num(-torch.inf).amax(1), group.nan_to_num(torch.inf).amin(1)  # (N,), (N,)
    share = group.isfinite().sum(1) / (group == best[:, None]).sum(1).clamp(min=1)
    return torch.where((total == best) & (best > worst), share, 0.0)[:, None]


class BestOfNTrainer(OnlineTrainer):
    """Imitates the best of `num_generations` answers."""

    advantage = staticmethod(best_of_group)

    def loss(self, model: torch.nn.Module, batch: RolloutBatch) -> LossOutput:
        """A loss of each answer; its mean over answers is that of the best ones over prompts."""
        logps = forward(model, batch, temperature=batch.temperature).sequence_mean()  # (N,)
        return LossOutput.of(-batch.advantages[:, 0] * logps, per="row")
