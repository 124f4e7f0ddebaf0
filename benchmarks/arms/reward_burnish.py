"""Burnish's arm: one job of its RewardTrainer, in the environment that started the benchmark."""

from __future__ import annotations

from typing import Any

from reward_measure import Row, run, training_options

from burnish import PreferenceBatch, RewardConfig, RewardTrainer


def make_trainer(job: dict[str, Any], model: Any, tokenizer: Any) -> RewardTrainer:
    return RewardTrainer(
        model=model,
        args=RewardConfig(**training_options(job), cpu_tuning=job["cpu_tuning"]),
        train_dataset=job["rows"],
        processing_class=tokenizer,
    )


def rows_of(batch: PreferenceBatch) -> tuple[list[Row], list[Row]]:
    """Chosen and rejected rows of a parcel, without its padding."""
    chosen, rejected = batch.pairs.unbind(1)
    return [_row(batch, index) for index in chosen.tolist()], [_row(batch, index) for index in rejected.tolist()]


def _row(batch: PreferenceBatch, index: int) -> Row:
    prompt = int(batch.prompt_index[index])
    prompt_ids = batch.prompt_ids[prompt][batch.prompt_mask[prompt]]
    return [*prompt_ids.tolist(), *batch.completion_ids[index][batch.completion_mask[index]].tolist()]


if __name__ == "__main__":
    run(library="burnish", make_trainer=make_trainer, rows_of=rows_of)
