"""One short GRPO training, with everything that must not matter as an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from burnish.trainers.grpo import GRPOConfig, GRPOTrainer
from conftest import make_model, make_tokenizer
from short_training import SHORT

NUM_PROMPTS = 12
END_TOKENS = list(range(2, 259, 5))  # a fifth of the vocabulary, so that answers of a random model end
WORDS = ["red", "blue", "green apples", "a long walk", "no", "rain"]


def make_prompts(num_rows: int = NUM_PROMPTS) -> list[dict[str, Any]]:
    """Conversational prompts of different lengths, each with a number for the reward function."""
    return [
        {"prompt": [{"role": "user", "content": f"Say {WORDS[index % 6]} {index}"}], "wanted": index % 5 + 1}
        for index in range(num_rows)
    ]


def near_wanted(completion_ids: list[list[int]], wanted: list[int], **_: Any) -> list[float]:
    """Up to 1, the nearer the mean of an answer's ids modulo 7 is to what the row wants."""
    means = [sum(token % 7 for token in ids) / len(ids) for ids in completion_ids]
    return [1 - abs(mean - number) / 7 for mean, number in zip(means, wanted, strict=True)]


def ending_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """The tiny model with many end tokens."""
    model = make_model(seed, dtype)
    model.generation_config.eos_token_id = END_TOKENS
    return model


def make_online_trainer(
    output_dir: Path | str,
    *,
    dtype: torch.dtype = torch.float64,
    rows: Any = None,
    reward_funcs: Any = near_wanted,
    trainer_class: type[GRPOTrainer] = GRPOTrainer,
    ref_seed: int | None = None,
    generator: Any = None,
    eval_dataset: Any = None,
    callbacks: Any = None,
    reward_processing_classes: Any = None,
    **options: Any,
) -> GRPOTrainer:
    """A GRPO trainer of a tiny model: 16 answers to 4 prompts in one optimizer step, unless options say otherwise."""
    settings = {
        **SHORT,
        "output_dir": str(output_dir),
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "max_completion_length": 8,
        "max_steps": 3,
        "reward_isolation": "none",
    }
    return trainer_class(
        ending_model(0, dtype),
        reward_funcs,
        GRPOConfig(**{**settings, **options}),
        ref_model=None if ref_seed is None else ending_model(ref_seed, dtype),
        generator=generator,
        train_dataset=make_prompts() if rows is None else rows,
        eval_dataset=eval_dataset,
        processing_class=make_tokenizer(),
        callbacks=callbacks,
        reward_processing_classes=reward_processing_classes,
    )


def step_lines(trainer: GRPOTrainer) -> list[dict[str, float]]:
    """The log lines of optimizer steps."""
    return [line for line in trainer.state.log_history if "grad_norm" in line]


UNREPEATABLE = ("time", "per_second", "reward_seconds", "runtime", "epoch", "total_flos")


def repeatable(line: dict[str, float]) -> dict[str, float]:
    """What of a log line has to be the same when a run is made again."""
    return {name: value for name, value in line.items() if not any(word in name for word in UNREPEATABLE)}


def some_flat(completion_ids: list[list[int]], wanted: list[int], **_: Any) -> list[float]:
    """`near_wanted`, and 0.5 for every answer to a prompt that wants 3 or more: those groups are without signal."""
    scores = near_wanted(completion_ids, wanted)
    return [0.5 if number >= 3 else score for score, number in zip(scores, wanted, strict=True)]


def make_flat_trainer(output_dir: Path | str, **options: Any) -> GRPOTrainer:
    """`make_online_trainer` with `some_flat`."""
    return make_online_trainer(output_dir, reward_funcs=some_flat, **options)
