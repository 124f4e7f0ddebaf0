"""One short PPO training, with everything that must not matter as an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from online_training import ending_model, make_prompts, near_wanted
from online_training import repeatable as repeatable_line

from burnish.models.value import load_value_model
from burnish.trainers.ppo import PPOConfig, PPOTrainer
from conftest import make_model, make_tokenizer
from short_training import SHORT


def value_model(seed: int = 3, dtype: torch.dtype = torch.float64) -> Any:
    """A critic whose trunk is not the policy's, with a head that is not 0."""
    return load_value_model(make_model(seed, dtype), tokenizer=make_tokenizer(), head_init="normal", seed=seed)


def make_ppo_trainer(
    output_dir: Path | str,
    *,
    dtype: torch.dtype = torch.float64,
    rows: Any = None,
    reward_funcs: Any = near_wanted,
    trainer_class: type[PPOTrainer] = PPOTrainer,
    ref_seed: int | None = 1,
    critic_seed: int | None = 3,
    eval_dataset: Any = None,
    callbacks: Any = None,
    **options: Any,
) -> PPOTrainer:
    """A PPO trainer of a tiny model: 16 answers to 16 prompts, two passes of one optimizer step."""
    settings = {
        **SHORT,
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 16,
        "num_iterations": 2,
        "max_completion_length": 8,
        "temperature": 1.0,
        "max_steps": 4,
        "reward_isolation": "none",
    }
    if options.get("kl_coef") == 0:
        ref_seed = None
    if "critic" in options:
        critic_seed = None
    return trainer_class(
        ending_model(0, dtype),
        reward_funcs,
        PPOConfig(**{**settings, **options}),
        ref_model=None if ref_seed is None else ending_model(ref_seed, dtype),
        value_model=None if critic_seed is None else value_model(critic_seed, dtype),
        train_dataset=make_prompts(16) if rows is None else rows,
        eval_dataset=eval_dataset,
        processing_class=make_tokenizer(),
        callbacks=callbacks,
    )


def repeatable(line: dict[str, float]) -> dict[str, float]:
    """What of a log line has to be the same when a run is made again."""
    return {name: value for name, value in repeatable_line(line).items() if name != "eps"}
