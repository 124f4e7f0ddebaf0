"""One short training of a reward model, with everything that must not matter as an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from burnish import RewardConfig, RewardTrainer
from conftest import make_model, make_rows, make_tokenizer
from short_training import SHORT

NUM_ROWS = 14  # with 4 pairs a step: three full steps and one of two pairs
QUESTION = [{"role": "user", "content": "Which color?"}]


def make_trainer(
    output_dir: Path | str,
    *,
    model: Any = None,
    rows: Any = None,
    dtype: torch.dtype = torch.float64,
    trainer_class: type[RewardTrainer] = RewardTrainer,
    peft: Any = None,
    tokenizer: Any = None,
    eval_rows: Any = None,
    **options: Any,
) -> RewardTrainer:
    """A trainer of a tiny reward model."""
    settings = {
        **SHORT,
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
    }
    return trainer_class(
        make_model(0, dtype) if model is None else model,
        args=RewardConfig(**{**settings, **options}),
        train_dataset=make_rows(NUM_ROWS) if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer or make_tokenizer(),
        peft_config=peft,
    )


def graded_rows(num_rows: int = 6) -> list[dict[str, Any]]:
    """Rows of three answers with scores, of which two are the same in every third row."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {index}?"}],
            "completions": [f"one {index}", "two two", f"three {'long ' * (index % 4)}"],
            "scores": [1.0, 0.0 if index % 3 else 1.0, -1.0 - index],
        }
        for index in range(num_rows)
    ]


def scores_of(trainer: RewardTrainer, rows: list[dict[str, Any]]) -> torch.Tensor:
    """What the trainer says of both answers of each row, (2 x rows,)."""
    batch = trainer.data_collator(list(trainer._prepare_dataset(rows, "these")))
    with torch.no_grad():
        return trainer.score(trainer.model.eval(), batch).scores


def conversations(rows: list[dict[str, Any]]) -> list[list[dict[str, str]]]:
    """The whole conversation of both answers of each row, in the same order."""
    return [[*row["prompt"], *row[side]] for row in rows for side in ("chosen", "rejected")]
