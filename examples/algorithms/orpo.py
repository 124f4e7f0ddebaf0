"""ORPO: imitate the chosen answer, and make it likelier than the rejected one, with no reference at all.

loss = -l_w - beta log σ(log odds_w - log odds_l),   odds = p / (1 - p),   p = exp(l),   l = log-prob per token

Source: Hong et al. (2403.07691) eq. 6 and 7.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from burnish import LossOutput, Mean, PolicyConfig, PolicyTrainer, PreferenceBatch, Term, arg, forward


@dataclass
class ORPOConfig(PolicyConfig):
    """Options of `ORPOTrainer`, on top of `PolicyConfig`."""

    beta: float = arg(0.1, "Weight of the odds ratio; the paper's lambda.")


class ORPOTrainer(PolicyTrainer):
    """Odds-ratio preference optimisation."""

    config_class = ORPOConfig
    args: ORPOConfig

    def loss(self, model: torch.nn.Module, batch: PreferenceBatch) -> LossOutput:
        """Two terms of each pair: imitation, and the odds ratio."""
        logps = forward(model, batch).sequence_mean()  # (N,)
        log_odds = logps - torch.log(-torch.expm1(logps.clamp(max=-1e-6)))  # (N,)
        chosen, rejected = log_odds[batch.pairs].unbind(-1)  # (M,), (M,)
        terms = (
            Term(name="sft", losses=-logps[batch.pairs[:, 0]], per="pair"),
            Term(name="odds", losses=-logsigmoid(chosen - rejected), per="pair", coefficient=self.args.beta),
        )
        return LossOutput(terms=terms, metrics={"rewards/accuracies": Mean.of(chosen > rejected)})
