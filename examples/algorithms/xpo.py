"""XPO: online DPO between an answer of the policy and one of the reference, with a bonus for exploring.

loss = -log σ(beta (r_w - r_l)) + alpha log π(y_ref),   r = log π(y) - log ref(y),   y_ref drawn from the reference

The bonus makes what the reference would say less likely, so that the policy looks where the reference does not.

Source: Xie et al., "Exploratory Preference Optimization" (2405.21046) algorithm 1.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from burnish import LossOutput, Mean, OnlineConfig, OnlineTrainer, RolloutBatch, Term, arg, forward


@dataclass
class XPOConfig(OnlineConfig):
    """Options of `XPOTrainer`, on top of `OnlineConfig`."""

    alpha: float = arg(1e-5, "Weight of the bonus.")
    beta: float = arg(0.1, "Strength of the pull to the reference.")
    num_generations: int = arg(2, "Answers to each prompt: the policy's, then the reference's.")


class XPOTrainer(OnlineTrainer):
    """Exploratory preference optimisation."""

    config_class = XPOConfig
    args: XPOConfig
    reads_reference = compares_answers = True

    def _generate(self, prompts: list) -> list:
        mine = self.draw(prompts, 1)
        with self.reference.answering() as reference:
            others = self.draw(prompts, 1, model=reference, stream=1)
        return [answer for pair in zip(mine, others, strict=True) for answer in pair]

    def loss(self, model: torch.nn.Module, batch: RolloutBatch) -> LossOutput:
        """The pair's loss at each of its two answers, and the bonus at the reference's."""
        logps = forward(model, batch, temperature=batch.temperature).logps  # (N, T)
        logratios = (logps - self.compute_ref_log_probs(batch)).sum(1)  # (N,)
        side = batch.advantages[:, 0].sign()  # (N,): 1 the better answer, -1 the other one, 0 a tie
        gap = torch.zeros_like(logratios).index_add(0, batch.prompt_index, side * logratios)[batch.prompt_index]
        bonus = 2 * logps.sum(1) * batch.columns["sample"]  # (N,): a mean over the pairs; 0 for the policy's own
        terms = (
            Term(name="pair", losses=-logsigmoid(self.args.beta * gap), per="row"),
            Term(name="bonus", losses=bonus, per="row", coefficient=self.args.alpha),
        )
        return LossOutput(terms=terms, metrics={"rewards/accuracies": Mean.of(gap > 0, weight=side.abs())})
