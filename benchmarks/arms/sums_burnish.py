"""Burnish's arm of a full run: its GRPOTrainer on the prompts of `recipe:grpo`."""

from __future__ import annotations

from typing import Any

from sums_measure import run

from burnish import GRPOConfig, GRPOTrainer


def make_trainer(job: dict[str, Any], options: dict[str, Any], policy: Any, tokenizer: Any) -> GRPOTrainer:
    return GRPOTrainer(
        policy, job["rewards"], GRPOConfig(**options), train_dataset=job["train_rows"], processing_class=tokenizer
    )


if __name__ == "__main__":
    run(library="burnish", make_trainer=make_trainer)
