"""Options of the engine: each reaches it, and another precision is corrected for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import make_online_trainer, step_lines

from burnish.trainers.grpo import GRPOConfig


def config(tmp_path, **options) -> GRPOConfig:
    return GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_options_reach_the_engine(tmp_path):
    options = {"max_rows": 3, "cache": "rows", "packing": "on", "dtype": "float32"}
    trainer = make_online_trainer(tmp_path, **{f"generation_{name}": value for name, value in options.items()})
    assert {name: vars(trainer.generator)[name] for name in options} == options


@pytest.mark.parametrize("name", ["cache", "packing", "dtype"])
def test_other_words_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"generation_{name}='fast'; allowed: auto, "):
        config(tmp_path, **{f"generation_{name}": "fast"})


@pytest.mark.parametrize(
    ("dtype", "trained", "differs"),
    [
        ("auto", {}, False),
        ("float32", {}, False),
        ("bfloat16", {}, True),
        ("auto", {"bf16": True}, False),
        ("bfloat16", {"bf16": True}, False),
        ("float32", {"bf16": True}, True),
    ],
)
def test_another_precision_than_that_of_training_needs_correction(tmp_path, dtype, trained, differs):
    if differs:
        with pytest.raises(ValueError, match=f"generation_dtype='{dtype}' .* set importance_sampling_correction=True"):
            config(tmp_path, generation_dtype=dtype, **trained)
    config(tmp_path, generation_dtype=dtype, importance_sampling_correction=differs, **trained)


def test_what_bfloat16_changes_is_in_the_weights(tmp_path):
    """The sampler's log-probs are those of bfloat16, and each answer's weight says how far they are off."""
    options = {"max_steps": 1, "importance_sampling_correction": True}
    gaps = {}
    for dtype in ("float32", "bfloat16"):
        trainer = make_online_trainer(tmp_path / dtype, dtype=torch.float32, generation_dtype=dtype, **options)
        trainer.train()
        gaps[dtype] = step_lines(trainer)[0]["sampling/sampling_logp_difference/mean"]
    assert gaps["float32"] < 1e-5
    assert 1e-4 < gaps["bfloat16"] < 0.1
