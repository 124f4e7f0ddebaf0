"""The peer's arm of a full run: TRL's GRPOTrainer on the prompts of `recipe:grpo`, scored by Burnish's reward."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from measure import import_burnish
from sums_measure import run
from trl import GRPOConfig, GRPOTrainer

import_burnish()

from burnish.rewards.builtin import number  # noqa: E402


def number_reward(completions: list[Any], answer: list[Any], **_: Any) -> list[float | None]:
    """The recipe's reward, called as TRL calls it."""
    return number(completions, answer)


def make_trainer(job: dict[str, Any], options: dict[str, Any], policy: Any, tokenizer: Any) -> GRPOTrainer:
    assert job["rewards"] == ["number"]
    return GRPOTrainer(
        model=policy,
        reward_funcs=number_reward,
        args=GRPOConfig(**options),
        train_dataset=Dataset.from_list(job["train_rows"]),
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    run(library="trl", make_trainer=make_trainer)
