"""Activations that are computed again in the backward pass give the gradient that kept ones give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from test_two_processes import run
from training import make_trainer, relative_distance, step_gradients

from burnish.models.adapters import plain_model
from conftest import make_rows

pytestmark = pytest.mark.gallery

ADAPTERS = {
    "whole": None,
    "lora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False},
    "last layer alone": {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1], "init_lora_weights": False},
}
SETTINGS = {
    "default": {"gradient_checkpointing": True},
    "new name": {"activation_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "not reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "no random state": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"preserve_rng_state": False}},
}


def gradients_and_calls(directory: Path, prefix_sharing: str = "off", **options):
    """The gradients of a short training, and how often its first layer ran."""
    trainer = make_trainer(directory, rows=make_rows(8), ref_seed=None, prefix_sharing=prefix_sharing, **options)
    calls = []
    layer = plain_model(trainer.model).model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(trainer.model.training))
    return step_gradients(trainer), sum(calls)


@pytest.mark.parametrize("layout", ["off", "tree"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_gradient_is_that_of_kept_activations(tmp_path, adapter, setting, layout):
    options = {"peft": ADAPTERS[adapter], "prefix_sharing": layout}
    kept, calls = gradients_and_calls(tmp_path / "kept", **options)
    again, more_calls = gradients_and_calls(tmp_path / "again", **options, **SETTINGS[setting])
    assert len(kept) == len(again) == 2
    assert more_calls == 2 * calls, "nothing was computed again"
    for first, second in zip(kept, again, strict=True):
        assert float(first.norm()) > 0
        assert relative_distance(second, first) < 1e-10


def test_several_losses_of_two_passes_and_dropout(tmp_path):
    """`aot` scores the step without gradient first; with dropout on, both runs of a layer drop the same."""
    options = {"loss_type": ["aot", "sft"], "peft": {**ADAPTERS["lora"], "lora_dropout": 0.3}, "disable_dropout": False}
    kept, _ = gradients_and_calls(tmp_path / "kept", **options)
    again, _ = gradients_and_calls(tmp_path / "again", **options, **SETTINGS["default"])
    assert all(relative_distance(second, first) < 1e-10 for first, second in zip(kept, again, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["whole", "lora"])
def test_two_processes(tmp_path, adapter):
    options = {"ref_seed": None, "peft": ADAPTERS[adapter], "gradient_checkpointing": True}
    one = run(tmp_path / "one", 1, use_cpu=True, **options)
    two = run(tmp_path / "two", 2, use_cpu=True, per_device_train_batch_size=2, **options)
    for first, second in zip(one[0], two[0], strict=True):
        assert relative_distance(second, first) < 1e-9
