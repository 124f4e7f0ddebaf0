"""Options of answering held-out prompts at evaluation, and of judging the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from burnish.generation.base import SamplingParams
from burnish.trainers.config import PolicyConfig, arg


@dataclass
class SamplingOptions(PolicyConfig):
    """Options of the answers at evaluation.

    Raises:
        ValueError: a number that is not allowed, or an option that would have no effect.
    """

    generate_during_eval: bool = arg(False, "Answer held-out prompts at each evaluation, and keep the answers.")
    num_eval_samples: int = arg(32, "So many prompts of each evaluated data set are answered, over all processes.")
    eval_max_new_tokens: int = arg(128, "Longest such answer in tokens; longer ones are cut and counted.")
    eval_temperature: float = arg(0.0, "Temperature of these answers; 0 takes the most likely token.")
    judge: Any = arg(
        None, "Function, or module:function, that compares an answer with the reference's: logs the win rate."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is not None and not isinstance(self.judge, str) and not callable(self.judge):
            raise ValueError(
                f"judge={self.judge!r}; give a function (prompts, first_answers, second_answers) -> list of "
                "probabilities that the first is better, or its name module:function"
            )
        self.eval_sampling(())
        idle = {"num_eval_samples", "eval_max_new_tokens", "eval_temperature", "judge"}.intersection(self.options_set)
        if idle and not self.generate_during_eval:
            raise ValueError(f"{', '.join(sorted(idle))} would have no effect: set generate_during_eval=True")

    def eval_sampling(self, end_token_ids: tuple[int, ...]) -> SamplingParams:
        """How the answers are drawn, and which tokens end them."""
        return SamplingParams(
            max_new_tokens=self.eval_max_new_tokens, temperature=self.eval_temperature, end_token_ids=end_token_ids
        )
