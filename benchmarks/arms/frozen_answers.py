"""A generator that gives the answers of a frozen rollout, so that two libraries train on the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from burnish import Completion


@dataclass
class FrozenGenerator:
    """Gives the answers of the frozen rollout, in order; their sampler's log-probs are not read."""

    completion_ids: list[list[int]]
    finish_reason: str

    def update_policy(self, model: Any, *, version: int) -> None:
        """The answers stay."""

    def generate(self, prompts: Any, params: Any, *, num_samples: int, **_: Any) -> list[Completion]:
        """The next answers of the rollout, `num_samples` to each prompt."""
        repeated = [prompt for prompt in prompts for _ in range(num_samples)]
        return [
            Completion(
                prompt_ids=prompt.ids,
                token_ids=torch.tensor(ids),
                logps=torch.zeros(len(ids)),
                kept_mass=torch.ones(len(ids)),
                loss_mask=torch.ones(len(ids), dtype=torch.bool),
                finish_reason=self.finish_reason,
            )
            for prompt, ids in zip(repeated, self.completion_ids, strict=True)
        ]
