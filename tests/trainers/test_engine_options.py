"""Options of the engine: each reaches it, and another precision is corrected for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import make_online_trainer, step_lines

from burnish.generation.native import NativeGenerator
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


def test_float32_draws_without_the_autocast_of_a_run_in_bfloat16(tmp_path, monkeypatch):
    """Accelerate puts an autocast of its own around the policy's forward: answers are as precise as was asked for."""
    drawn = []
    own = NativeGenerator.generate

    def generate(self, *arguments, **options):
        drawn.append(own(self, *arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(NativeGenerator, "generate", generate)
    options = {"max_steps": 1, "importance_sampling_correction": True, "generation_dtype": "float32"}
    for bf16 in (False, True):
        trainer = make_online_trainer(tmp_path / str(bf16), dtype=torch.float32, bf16=bf16, **options)
        trainer.train()
        assert ("_original_forward" in vars(trainer.policy)) is bf16
        assert vars(trainer.policy)["forward"] is not vars(trainer.policy).get("_original_forward")
    first, second = ([(c.token_ids.tolist(), c.logps.tolist()) for c in found] for found in drawn)
    assert first == second


def test_a_run_in_bfloat16_shares_prompts_as_any_other(tmp_path):
    """What a cache makes of bfloat16 is held against bfloat16, and not against float32."""
    trainer = make_online_trainer(tmp_path, dtype=torch.float32, bf16=True, generation_cache="shared", max_steps=1)
    trainer.train()
    assert trainer.generator.description.startswith("cache shared: ")
