"""A run that is stopped at any step and resumed is bit for bit the run that was never stopped."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import make_rows

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer

from burnish.runtime.rundir import read_events, read_metrics
from burnish.testing.trials import StopAfter, weights_of

IGNORED = ("time", "runtime", "per_second", "total_flos", "train_loss")
NUM_STEPS = 8


def trainer_at(directory: Path, **options):
    """Two epochs of four steps, the last of each not full; log lines span two steps, saves do not match them."""
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "cosine",
        "dtype": torch.float32,
    }
    return make_trainer(directory, **{**settings, **options})


def metrics_in(directory: Path) -> list[dict]:
    lines = read_metrics(directory / "metrics.jsonl")
    kept = [{k: v for k, v in line.items() if not any(word in k for word in IGNORED)} for line in lines]
    return [line for line in kept if len(line) > 2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped, plain and with a loss of two passes."""
    runs = {}
    for loss in (("sigmoid", "sft"), ("aot",)):
        directory = tmp_path_factory.mktemp("whole") / "run"
        trainer = trainer_at(directory, loss_type=list(loss))
        trainer.train()
        assert trainer.state.global_step == NUM_STEPS
        runs[loss] = (directory, weights_of(trainer), metrics_in(directory))
    return runs


def stop_and_resume(tmp_path: Path, step: int, loss: tuple[str, ...], **options):
    directory = tmp_path / "run"
    first = trainer_at(directory, loss_type=list(loss), **options)
    first.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert (directory / f"checkpoint-{step}").is_dir()
    assert not (directory / f"checkpoint-{step + 1}").exists()
    second = trainer_at(directory, loss_type=list(loss), **options)
    second.train(resume_from_checkpoint=True)
    return directory, second


MID_WINDOW = 5  # in the middle of a log window, and of an epoch


@pytest.mark.parametrize(
    "step",
    [s if s == MID_WINDOW else pytest.param(s, marks=pytest.mark.slow) for s in range(1, NUM_STEPS)],
)
def test_resumed_run_is_bit_identical(tmp_path, whole, step):
    _, weights, metrics = whole["sigmoid", "sft"]
    directory, resumed = stop_and_resume(tmp_path, step, ("sigmoid", "sft"))
    for name, tensor in weights_of(resumed).items():
        assert torch.equal(tensor, weights[name]), name
    assert metrics_in(directory) == metrics


@pytest.mark.parametrize("step", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_resumed_run_is_bit_identical_when_rows_are_coupled(tmp_path, whole, step):
    _, weights, metrics = whole["aot",]
    directory, resumed = stop_and_resume(tmp_path, step, ("aot",))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(resumed).items())
    assert metrics_in(directory) == metrics


def test_dropout_is_replayed(tmp_path):
    """With dropout on, the random numbers continue where they stopped."""
    options = {"disable_dropout": False, "num_train_epochs": 1}
    directory = tmp_path / "whole"
    trainer = trainer_at(directory, **options)
    _switch_dropout_on(trainer)
    trainer.train()
    stopped = tmp_path / "run"
    first = trainer_at(stopped, **options)
    _switch_dropout_on(first)
    first.add_callback(StopAfter(3))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer_at(stopped, **options)
    _switch_dropout_on(second)
    second.train(resume_from_checkpoint=True)
    assert metrics_in(stopped) == metrics_in(directory)
    own, resumed = weights_of(trainer), weights_of(second)
    assert all(torch.equal(own[name], resumed[name]) for name in own)


def _switch_dropout_on(trainer) -> None:
    for layer in trainer.model.model.layers:
        layer.self_attn.attention_dropout = 0.3


FILES = ["model.safetensors", "optimizer.safetensors", "rank_state_0.json", "trainer_state.json"]
DAMAGES = ["flip", "cut", "delete"]
FAST = {("model.safetensors", "flip"), ("optimizer.safetensors", "delete")}


@pytest.mark.parametrize(
    ("file", "damage"),
    [(f, d) if (f, d) in FAST else pytest.param(f, d, marks=pytest.mark.slow) for f in FILES for d in DAMAGES],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, whole, file, damage):
    directory, weights, metrics = whole["sigmoid", "sft"]
    copy = tmp_path / "run"
    shutil.copytree(directory, copy, ignore=shutil.ignore_patterns("checkpoint-[15678]", "run.lock*"))
    target = copy / "checkpoint-4" / file
    content = bytearray(target.read_bytes())
    if damage == "delete":
        target.unlink()
    else:
        content[len(content) // 2] ^= 1
        target.write_bytes(content if damage == "flip" else content[:-3])
    trainer = trainer_at(copy, loss_type=["sigmoid", "sft"])
    trainer.train(resume_from_checkpoint=True)
    events = read_events(copy / "events.jsonl")
    damaged = [event for event in events if event["kind"] == "damaged_checkpoint"]
    assert [event["path"] for event in damaged] == ["checkpoint-4"]
    assert file in json.dumps(damaged)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(trainer).items())
    assert metrics_in(copy) == metrics


def test_plain_from_pretrained_reads_a_checkpoint(whole):
    directory, weights, _ = whole["sigmoid", "sft"]
    checkpoint = directory / f"checkpoint-{NUM_STEPS}"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert AutoTokenizer.from_pretrained(checkpoint).eos_token == "<|im_end|>"
    assert set(load_file(checkpoint / "model.safetensors")) <= set(weights)


def test_no_file_of_a_run_is_a_pickle(whole):
    directory, _, _ = whole["sigmoid", "sft"]
    suffixes = {path.suffix for path in directory.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".yaml", ".jinja", ".lock"}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"beta": 0.2}, "beta"),
        ({"seed": 6}, "seed"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size"),
    ],
)
def test_other_settings_are_refused_by_name(whole, changed, named):
    directory, _, _ = whole["sigmoid", "sft"]
    trainer = trainer_at(directory, **{"loss_type": ["sigmoid", "sft"], **changed})
    with pytest.raises(ValueError, match=rf"{named}: was .* is "):
        trainer.train(resume_from_checkpoint=True)


def test_other_rows_are_refused(whole):
    directory, _, _ = whole["sigmoid", "sft"]
    trainer = trainer_at(directory, loss_type=["sigmoid", "sft"], rows=make_rows(15))
    with pytest.raises(ValueError, match="train_data: was"):
        trainer.train(resume_from_checkpoint=True)


def test_a_run_that_has_made_all_of_its_steps_makes_no_more(tmp_path):
    """Also where its last step lies in the middle of an epoch: Trainer looks only after a step."""
    trainer = trainer_at(tmp_path / "run", max_steps=3)
    trainer.train()
    again = trainer_at(tmp_path / "run", max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for name, weight in weights_of(trainer).items():
        assert torch.equal(weight, weights_of(again)[name]), name
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    assert [
        event["step"] for event in read_events(tmp_path / "run" / "events.jsonl") if event["kind"] == "complete"
    ] == [3]


def test_resume_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(ValueError, match="no sound checkpoint"):
        trainer_at(tmp_path / "run").train(resume_from_checkpoint=True)


def test_best_model_and_several_evaluation_sets(tmp_path):
    """`load_best_model_at_end` over one of two evaluation sets, evaluated before training too."""
    from burnish import DPOConfig, DPOTrainer
    from conftest import make_model, make_tokenizer

    rows = make_rows(14)
    trainer = DPOTrainer(
        make_model(),
        args=DPOConfig(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=4,
            max_steps=6,
            learning_rate=3e-3,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=2,
            save_steps=2,
            save_total_limit=1,
            eval_on_start=True,
            load_best_model_at_end=True,
            metric_for_best_model="eval_first_rewards/margins",
            greater_is_better=False,
            report_to="none",
            disable_tqdm=True,
            cpu_tuning="off",
        ),
        train_dataset=rows,
        eval_dataset={"first": rows[:5], "second": rows[5:]},
        processing_class=make_tokenizer(),
    )
    trainer.train()
    margins = {
        line["step"]: line["eval_first_rewards/margins"]
        for line in trainer.state.log_history
        if "eval_first_rewards/margins" in line
    }
    assert set(margins) == {0, 2, 4, 6}
    assert margins[0] == 0.0
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / "run" / "checkpoint-2")  # the smallest margin of those that were saved
    assert Path(best).is_dir()
    saved = load_file(Path(best) / "model.safetensors")
    assert all(torch.equal(trainer.model.state_dict()[name], tensor) for name, tensor in saved.items())
    assert any("eval_second_loss" in line for line in trainer.state.log_history)


def test_another_reference_is_refused(whole, tmp_path):
    """Resuming a run of a model in memory with the trained model would make that the reference."""
    directory, _, _ = whole["sigmoid", "sft"]
    trainer = trainer_at(directory, loss_type=["sigmoid", "sft"], ref_seed=2)
    with pytest.raises(ValueError, match="reference: was"):
        trainer.train(resume_from_checkpoint=True)


def test_an_option_of_a_custom_configuration_binds():
    from burnish.trainers.persistence import binds

    assert binds("gamma")
    assert binds("warmup_steps")
    assert not binds("logging_steps")
