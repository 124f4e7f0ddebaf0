"""One short training on single answers, SFT or KTO, with everything that must not matter as an argument."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from burnish import KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from conftest import make_model, make_rows, make_tokenizer
from short_training import SHORT

METHODS = {"sft": (SFTTrainer, SFTConfig), "kto": (KTOTrainer, KTOConfig)}
NUM_ROWS = 14  # with 4 rows a step: three full steps and one of two rows


def make_trainer(
    method: str,
    output_dir: Path | str,
    *,
    rows: Any = None,
    eval_rows: Any = None,
    dtype: torch.dtype = torch.float64,
    ref_seed: int | None = 1,
    peft: Any = None,
    **options: Any,
) -> SFTTrainer | KTOTrainer:
    """A trainer of a tiny model; KTO's reference differs from the policy unless `ref_seed` is None."""
    trainer_class, config_class = METHODS[method]
    settings = {
        **SHORT,
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1,
    }
    reference = {"ref_model": make_model(ref_seed, dtype)} if method == "kto" and ref_seed is not None else {}
    return trainer_class(
        make_model(0, dtype),
        args=config_class(**{**settings, **options}),
        train_dataset=make_rows(NUM_ROWS) if rows is None else rows,
        eval_dataset=eval_rows,
        processing_class=make_tokenizer(),
        peft_config=peft,
        **reference,
    )


make_sft, make_kto = (partial(make_trainer, method) for method in METHODS)


def judged_rows(num_rows: int = 9) -> list[dict[str, Any]]:
    """One judged answer to each prompt, every third of them desirable."""
    return [
        {"prompt": f"Question {i}?", "completion": f" answer {'long ' * (i % 4)}{i}", "label": i % 3 == 0}
        for i in range(num_rows)
    ]
