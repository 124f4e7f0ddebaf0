"""The peer's arm: one job of TRL's RewardTrainer, in the peer's environment."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from reward_measure import Row, run, training_options
from trl import RewardConfig, RewardTrainer


def make_trainer(job: dict[str, Any], model: Any, tokenizer: Any) -> RewardTrainer:
    # The rows stand in the order of Burnish's sampler, which is not TRL's: TRL takes them as they stand.
    return RewardTrainer(
        model=model,
        args=RewardConfig(**training_options(job), train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(job["ordered_rows"]),
        processing_class=tokenizer,
    )


def rows_of(batch: Any) -> tuple[list[Row], list[Row]]:
    """Chosen and rejected rows of a padded micro-batch, in which all chosen ones come first."""
    present = batch["attention_mask"].bool()
    rows = [ids[there].tolist() for ids, there in zip(batch["input_ids"], present, strict=True)]
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


if __name__ == "__main__":
    run(library="trl", make_trainer=make_trainer, rows_of=rows_of)
