"""`torch_compile` compiles the layers of a run's models, changes no number, and resumes exactly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import DynamoBackend
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer

from burnish.runtime.rundir import read_events, read_metrics
from burnish.testing.trials import StopAfter, weights_of
from conftest import make_model

# What torch says while it traces, of the gradients of tensors that are no leaves.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
OPTIONS = {"logging_steps": 1, "max_steps": 3, "gradient_accumulation_steps": 1, "cpu_tuning": "off"}


def rewards_in(directory: Path) -> list[tuple[float, float]]:
    return [
        (line["loss"], line["rewards/margins"]) for line in read_metrics(directory / "metrics.jsonl") if "loss" in line
    ]


def test_layers_are_compiled_and_not_the_model(tmp_path):
    """Two layers, and accelerate wraps nothing around the model."""
    trainer = make_trainer(tmp_path / "run", **OPTIONS, torch_compile=True)
    assert trainer.args.torch_compile_backend == "inductor"
    assert trainer.num_compiled_layers == 2
    assert trainer.accelerator.state.dynamo_plugin.backend == DynamoBackend.NO


@pytest.mark.slow
def test_a_run_is_the_same(tmp_path):
    """Loss, margins and weights with and without; the checkpoint is read by anybody."""
    torch._dynamo.reset()
    runs = {}
    for name, options in (("plain", {}), ("compiled", {"torch_compile": True, "torch_compile_backend": "eager"})):
        trainer = make_trainer(tmp_path / name, **OPTIONS, **options)
        trainer.train()
        runs[name] = (rewards_in(tmp_path / name), weights_of(trainer))
    assert any(event["kind"] == "compile" for event in read_events(tmp_path / "compiled" / "events.jsonl"))
    assert len(runs["plain"][0]) == 3
    for own, expected in zip(runs["compiled"][0], runs["plain"][0], strict=True):
        assert own == pytest.approx(expected, abs=1e-6)
    for name, expected in runs["plain"][1].items():
        torch.testing.assert_close(runs["compiled"][1][name], expected, atol=1e-6, rtol=0)
    trainer.save_model(str(tmp_path / "saved"))
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert read.keys() == make_model().state_dict().keys()


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(tmp_path):
    """With a backward pass that is compiled, from the middle; what is traced is traced anew, as in another process."""
    options = {**OPTIONS, "save_strategy": "steps", "save_steps": 1, "torch_compile_backend": "aot_eager"}
    torch._dynamo.reset()
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    first = make_trainer(tmp_path / "run", **options)
    first.add_callback(StopAfter(2))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    torch._dynamo.reset()
    second = make_trainer(tmp_path / "run", **options)
    second.train(resume_from_checkpoint=True)
    assert rewards_in(tmp_path / "run") == rewards_in(tmp_path / "whole")
    own, resumed = weights_of(whole), weights_of(second)
    assert all(torch.equal(own[name], resumed[name]) for name in own)


def test_accelerate_is_not_told_to_compile(tmp_path, monkeypatch):
    """It would compile the whole model, parcels and layouts too."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with pytest.raises(ValueError, match=r"accelerate is told to compile models \(eager, .* set\s+torch_compile=True"):
        make_trainer(tmp_path / "run", **OPTIONS)
