"""A reward model from a run file: init, check, preview, train, resume."""

from __future__ import annotations

import json

import pytest
from run_place import save_model, start, write_rows
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.runfile import RunFileError, load_runfile
from conftest import make_rows, make_tokenizer

COMMAND = CliRunner()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run of a tiny model that names everything by paths."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    save_model(tmp_path / "model", tokenizer=tokenizer)
    write_rows(tmp_path / "rows.jsonl", make_rows(12))
    path = tmp_path / "reward.yaml"
    path.write_text(
        "method: reward\nmodel: model\ndata: {train: rows.jsonl, eval_rows: 4}\nsamples: 2\ntraining: {max_steps: 3, "
        "per_device_train_batch_size: 2, logging_steps: 1, cpu_tuning: 'off', output_dir: run, learning_rate: 1e-2}\n"
    )
    monkeypatch.chdir(tmp_path)
    return path


def test_train_then_resume(config, tmp_path):
    outcome, screen = start(config)
    assert outcome.before["eval_accuracy"].weight == outcome.after["eval_accuracy"].weight == 4
    assert "reward on model: LlamaForSequenceClassification" in screen
    assert "reference:" not in screen
    assert "loss: bradley_terry; learning rate 0.01, linear" in screen
    assert "Before training: evaluating and scoring the sample rows." in screen
    assert "eval, after: how sure it is of a pair, and how often right" in screen
    assert "eval_accuracy changed by" in screen
    first, second = outcome.samples
    assert first.prompt.startswith("Question ")
    chosen, rejected = first.after.text.splitlines()
    assert (chosen[0] in "+-", rejected[0] in "+-") == (True, True)
    assert first.before.text != first.after.text
    assert second.prompt != first.prompt
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert plain.config.pad_token_id == 0
    result = COMMAND.invoke(app, ["resume", str(tmp_path / "run"), "--set", "max_steps=5"])
    assert result.exit_code == 0, result.output
    assert "steps 4 to 5" in result.output


def test_an_adapter(config, tmp_path):
    _, screen = start(config, ["peft={r: 4, target_modules: [q_proj]}", "max_steps=1", "samples=0"])
    assert "reward on model" in screen
    held = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert "score" in held["modules_to_save"]
    assert held["task_type"] == "SEQ_CLS"


def test_check_and_preview(config):
    checked = COMMAND.invoke(app, ["check", str(config)])
    assert checked.exit_code == 0, checked.output
    assert "sound: reward on model" in checked.output
    assert "reference" not in checked.output
    seen = COMMAND.invoke(app, ["preview", str(config), "-n", "2"])
    assert seen.exit_code == 0, seen.output
    assert "reward on model: 2 of" in seen.output


def test_init_prints_what_it_reads():
    printed = COMMAND.invoke(app, ["init", "reward"]).output
    assert "center_rewards_coefficient: null" in printed
    assert not [key for key in ("ref_model:", "rewards:", "max_new_tokens:", "beta:") if f"\n{key}" in printed]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ref_model=model", "ref_model: has no effect: reward has no reference"),
        ("rewards=number", "rewards: has no effect: reward draws no answers"),
        ("max_new_tokens=5", "max_new_tokens: has no effect: reward writes no answers"),
        ("beta=0.2", "beta: is no known key"),
        ("loss_type=sigmoid", "loss_type"),
        ("center_rewards_coefficient=-1", "center_rewards_coefficient"),
    ],
)
def test_what_a_reward_model_has_no_use_for(config, override, message):
    with pytest.raises(RunFileError, match=message):
        load_runfile(config, [override])


def test_the_recipe_is_sound():
    runfile = load_runfile("recipe:reward")
    assert (runfile.method, runfile.eval, runfile.training["max_steps"]) == ("reward", "recipe:spoken-heldout", 10)
