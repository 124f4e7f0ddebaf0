"""Online DPO: the policy answers twice, a reward says which answer is better, and DPO learns from the pair.

loss = -log σ(beta (r_w - r_l)),   r = log π(y) - log ref(y);   a tie is log 2, without gradient

Source: Guo et al., "Direct Language Model Alignment from Online AI Feedback" (2402.04792) algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from burnish import LossOutput, Mean, OnlineConfig, OnlineTrainer, RolloutBatch, arg, forward


@dataclass
class OnlineDPOConfig(OnlineConfig):
    """Options of `OnlineDPOTrainer`, on top of `OnlineConfig`."""

    beta: float = arg(0.1, "Strength of the pull to the reference.")
    num_generations: int = arg(2, "Answers to each prompt: a pair.")


class OnlineDPOTrainer(OnlineTrainer):
    """DPO on pairs that the policy draws itself."""

    config_class = OnlineDPOConfig
    args: OnlineDPOConfig
    reads_reference = compares_answers = True

    def loss(self, model: torch.nn.Module, batch: RolloutBatch) -> LossOutput:
        """The pair's loss at each of its two answers."""
        logps = forward(model, batch, temperature=batch.temperature).logps  # (N, T)
        logratios = (logps - self.compute_ref_log_probs(batch)).sum(1)  # (N,)
        side = batch.advantages[:, 0].sign()  # (N,): 1 the better answer, -1 the other one, 0 a tie
        gap = torch.zeros_like(logratios).index_add(0, batch.prompt_index, side * logratios)[batch.prompt_index]
        metrics = {"rewards/accuracies": Mean.of(gap > 0, weight=side.abs())}
        return LossOutput.of(-logsigmoid(self.args.beta * gap), per="row", metrics=metrics)
