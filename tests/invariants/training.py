"""One short DPO training, with everything that must not matter as an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from burnish import DPOConfig, DPOTrainer
from burnish.testing.trials import relative_distance, step_gradients
from conftest import make_model, make_rows, make_tokenizer
from short_training import SHORT

__all__ = ["NUM_ROWS", "make_trainer", "relative_distance", "step_gradients"]
NUM_ROWS = 14  # with 4 pairs a step: three full steps and one of two pairs


def make_trainer(
    output_dir: Path | str,
    *,
    dtype: torch.dtype = torch.float64,
    rows: list[dict[str, Any]] | None = None,
    ref_seed: int | None = 1,
    trainer_class: type[DPOTrainer] = DPOTrainer,
    peft: dict[str, Any] | None = None,
    **options: Any,
) -> DPOTrainer:
    """A DPO trainer of a tiny model; the reference differs from the policy unless `ref_seed` is None."""
    settings = {
        **SHORT,
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
    }
    return trainer_class(
        make_model(0, dtype),
        args=DPOConfig(**{**settings, **options}),
        ref_model=None if ref_seed is None else make_model(ref_seed, dtype),
        train_dataset=make_rows(NUM_ROWS) if rows is None else rows,
        processing_class=make_tokenizer(),
        peft_config=peft,
    )
