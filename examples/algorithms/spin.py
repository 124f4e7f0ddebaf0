"""SPIN: the policy learns to tell the data's answers from those of itself as it was, until nobody could.

loss = -log σ(beta (r_w - r_l)),   r = log π(y) - log ref(y),   y_w of the data set, y_l drawn from the reference

The data's own rejected answers are replaced. The reference is the opponent; `sync_ref_model` with
`ref_model_mixup_alpha: 1.0` begins the next iteration of the paper every `ref_model_sync_steps` steps.

Source: Chen et al., "Self-Play Fine-Tuning" (2401.01335) algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from burnish import DPOConfig, DPOTrainer, PreferenceBatch, SamplingParams, arg


@dataclass
class SPINConfig(DPOConfig):
    """Options of `SPINTrainer`, on top of `DPOConfig`."""

    max_new_tokens: int = arg(128, "Longest answer of the opponent in tokens.")


class SPINTrainer(DPOTrainer):
    """Self-play: DPO against answers of the reference."""

    config_class = SPINConfig
    args: SPINConfig

    def prepare_step(self, model: torch.nn.Module, parcels: Sequence[PreferenceBatch]) -> list[PreferenceBatch]:
        """The step's parcels with answers of the opponent in place of the rejected ones."""
        params = SamplingParams(max_new_tokens=self.args.max_new_tokens, end_token_ids=self.end_token_ids)
        played = []
        with self.reference.answering() as opponent:
            for batch in parcels:
                rejected = batch.pairs[:, 1]
                played.append(batch.with_answers(rejected, self.draw(batch, rejected, params, model=opponent)))
        return super().prepare_step(model, played)
