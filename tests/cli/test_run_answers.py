"""SFT and KTO from a run file: init, check, preview, train, resume."""

from __future__ import annotations

import pytest
from run_place import save_model, start, write_rows
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.runfile import RunFileError, load_runfile
from conftest import make_rows

COMMAND = CliRunner()


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Run files of a tiny model that name everything by paths, one for each method."""
    save_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", make_rows(12))
    for method in ("sft", "kto"):
        (tmp_path / f"{method}.yaml").write_text(
            f"method: {method}\nmodel: model\ndata: {{train: rows.jsonl, eval_rows: 4}}\nsamples: 1\n"
            "max_new_tokens: 4\ntraining: {max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, "
            f"cpu_tuning: 'off', output_dir: run-{method}, learning_rate: 1e-2}}\n"
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("method", "plan", "metric"),
    [
        ("sft", "loss: nll; learning rate 0.01", "eval_mean_token_accuracy"),
        ("kto", "loss: kto, beta 0.1; learning rate 0.01", "eval_rewards/margins"),
    ],
)
def test_train_then_resume(config, method, plan, metric):
    outcome, screen = start(f"{method}.yaml")
    assert metric in outcome.before
    assert outcome.after["eval_loss"].mean < outcome.before["eval_loss"].mean
    assert plan in screen
    assert "2 rows x 1 micro-batch x 1 process = 2 rows a step" in screen
    assert ("reference: copy of the policy" in screen) == (method == "kto")
    assert outcome.samples[0].prompt.startswith("Question ")
    result = COMMAND.invoke(app, ["resume", f"run-{method}", "--set", "max_steps=3"])
    assert result.exit_code == 0, result.output
    assert "3 to 3" in result.output or "step 3" in result.output


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_check_preview_init_and_explain(config, method):
    checked = COMMAND.invoke(app, ["check", f"{method}.yaml"])
    assert checked.exit_code == 0, checked.output
    assert f"sound: {method} on model" in checked.output
    assert "12 messages" in checked.output
    seen = COMMAND.invoke(app, ["preview", f"{method}.yaml", "-n", "2"])
    assert seen.exit_code == 0, seen.output
    assert "walk" in seen.output
    assert ("undesirable" in seen.output) == (method == "kto")
    printed = COMMAND.invoke(app, ["init", method]).output
    assert f"method: {method}" in printed
    assert ("\nref_model:" in printed) == (method == "kto")
    assert f"{method}: a method." in COMMAND.invoke(app, ["explain", method]).output


@pytest.mark.parametrize(
    ("method", "override", "message"),
    [
        ("sft", "ref_model=model", "ref_model: has no effect: sft has no reference"),
        ("sft", "rewards=number", "rewards: has no effect: sft draws no answers"),
        ("sft", "beta=0.2", "beta: is no known key"),
        ("sft", "loss_type=kto", "loss_type"),
        ("kto", "desirable_weight=0", "desirable_weight"),
        ("kto", "loss_type=sigmoid", "loss_type"),
        ("sft", "dataset_text_field=body", "dataset_text_field"),
    ],
)
def test_what_has_no_effect_or_is_not_there(config, method, override, message):
    with pytest.raises(RunFileError, match=message):
        load_runfile(f"{method}.yaml", [override])


def test_rows_without_answers_are_found_before_the_run(config):
    (config / "rows.jsonl").write_text('{"prompt": "x"}\n')
    checked = COMMAND.invoke(app, ["check", "sft.yaml"])
    assert checked.exit_code != 0
    assert "no column with an answer" in checked.output


@pytest.mark.parametrize("method", ["sft", "kto"])
def test_the_recipe_is_sound(method):
    runfile = load_runfile(f"recipe:{method}")
    assert (runfile.method, runfile.eval) == (method, "recipe:spoken-heldout")
    assert runfile.training["max_steps"] > 0
