from __future__ import annotations

import io

import pytest
import yaml
from huggingface_hub import HfApi
from rich.console import Console
from run_place import save_model, start, write_rows
from safetensors.torch import load_file
from typer.testing import CliRunner

from burnish.cli.app import app
from burnish.cli.run import run
from burnish.cli.runfile import load_runfile
from burnish.runtime.rundir import RunExistsError, read_metrics
from conftest import make_rows
from hub_server import running_hub

OPTIONS = ["per_device_train_batch_size=2", "logging_steps=1", "learning_rate=1e-3", "cpu_tuning=off"]


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """A run of a tiny model, as `--set` texts on a file that names everything by paths."""
    save_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", make_rows(12))
    config = tmp_path / "dpo.yaml"
    config.write_text(
        "model: model\ndata: {train: rows.jsonl, eval_rows: 4}\nsamples: 2\nmax_new_tokens: 4\ntraining: {max_steps: 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    return config, [*OPTIONS, f"output_dir={tmp_path / 'run'}"]


def test_train_then_resume(arguments, tmp_path):
    config, overrides = arguments
    outcome, screen = start(config, overrides)
    run_dir = tmp_path / "run"
    assert outcome.before["eval_rewards/accuracies"].weight == 4
    assert outcome.before["eval_rewards/accuracies"].mean == 0.5
    assert set(outcome.before) <= set(outcome.after)  # a correlation needs margins that differ
    assert [sample.before is not None for sample in outcome.samples] == [True, True]
    assert "2 pairs x 1 micro-batch x 1 process = 2 pairs a step" in screen
    assert screen.count("step 3/3") == 1
    assert f"burnish train {run_dir}/run.yaml --set output_dir=null --set max_steps=" in screen
    assert (run_dir / "model.safetensors").is_file()
    evaluated = [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "eval_loss" in line]
    assert evaluated == [0, 3]

    stored = yaml.safe_load((run_dir / "run.yaml").read_text())
    assert stored["data"] == {
        "train": str(tmp_path / "rows.jsonl"),
        "streaming": False,
        "eval": None,
        "eval_rows": 4,
    }
    assert load_runfile(run_dir / "run.yaml").training["max_steps"] == 3

    before = {name: tensor.clone() for name, tensor in load_file(run_dir / "model.safetensors").items()}
    result = CliRunner().invoke(app, ["resume", str(run_dir), "--set", "max_steps=5"])
    assert result.exit_code == 0, result.output
    assert "Continuing from checkpoint-3" in result.output
    assert "steps 4 to 5" in result.output
    assert "0.500 [" in result.output
    after = load_file(run_dir / "model.safetensors")
    assert any(not before[name].equal(after[name]) for name in before)


def test_a_run_directory_is_not_taken_twice(arguments, tmp_path):
    config, overrides = arguments
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("")
    with pytest.raises(RunExistsError, match="burnish resume"):
        start(config, overrides)


def test_bad_rows_end_with_3(arguments, tmp_path):
    config, overrides = arguments
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": null, "rejected": "b"}\n' * 6)
    sets = [word for text in overrides for word in ("--set", text)]
    result = CliRunner().invoke(app, ["train", str(config), *sets])
    assert result.exit_code == 3, result.output
    assert "Traceback" not in result.output


def test_without_held_out_rows_nothing_is_measured(arguments):
    config, overrides = arguments
    outcome, screen = start(config, [*overrides, "data.eval_rows=null", "samples=0", "max_steps=1"])
    assert (outcome.before, outcome.after, outcome.samples) == ({}, {}, ())
    assert "No held-out rows" in screen


def test_a_loss_from_a_module_and_two_held_out_sets(arguments, tmp_path):
    config, overrides = arguments
    (tmp_path / "losses_of_this_test.py").write_text(
        "from torch import relu\ndef margin(pair, *, beta):\n    return relu(1 - beta * pair.logratio_diff)\n"
    )
    sets = ["loss_type=losses_of_this_test:margin", "data.eval_rows=null", "data.eval={a: rows.jsonl, b: rows.jsonl}"]
    outcome, screen = start(config, [*overrides, *sets, "max_steps=1"])
    assert outcome.before["eval_a_loss"].mean == pytest.approx(1.0, abs=1e-6)
    assert "loss: losses_of_this_test:margin, beta 0.1" in screen
    assert "eval_a 12 pairs, eval_b 12 pairs" in screen
    stored = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert stored["training"]["loss_type"] == ["losses_of_this_test:margin"]


def test_a_function_that_the_module_does_not_have(arguments, tmp_path):
    config, overrides = arguments
    (tmp_path / "empty_losses_of_this_test.py").write_text("def other(pair): ...\n")
    with pytest.raises(ValueError, match="it has: other"):
        start(config, [*overrides, "loss_type=empty_losses_of_this_test:margin"])


def test_several_sources_then_resume(arguments, tmp_path):
    config, overrides = arguments
    sets = ["data.train=[{path: rows.jsonl, weight: 1}, {path: rows.jsonl, name: again, weight: 2}]", "max_steps=2"]
    outcome, screen = start(config, [*overrides, *sets])
    assert {name for name in outcome.before if name.endswith("loss")} == {"eval_rows_loss", "eval_again_loss"}
    assert "mixture: an epoch takes 20 rows of 2 sources" in screen
    assert "rows: 7 of 10 rows, 35.0% of it; the other 3 are left to the next epochs" in screen
    assert "2 steps, 0.2 passes over 20 rows" in screen
    stored = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert stored["data"]["train"] == dict.fromkeys(("rows", "again"), str(tmp_path / "rows.jsonl"))
    assert stored["training"]["dataset_weights"] == {"rows": 1, "again": 2}
    result = CliRunner().invoke(app, ["resume", str(tmp_path / "run"), "--set", "max_steps=3"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("sets", "is_told"),
    [
        (["max_steps=5"], True),
        (["max_steps=4"], False),
        pytest.param(["max_steps=5", "precompute_ref_log_probs=true"], False, marks=pytest.mark.gallery),
        pytest.param(
            ["max_steps=5", "sync_ref_model=true", "ref_model_sync_steps=4"], False, marks=pytest.mark.gallery
        ),
    ],
    ids=["rows come again", "one pass", "scored before", "the reference moves"],
)
def test_a_reference_that_is_asked_again_and_again_is_told(arguments, sets, is_told):
    config, overrides = arguments
    _, screen = start(config, [*overrides, *sets])
    assert ("1.25 passes, and always says the same: precompute_ref_log_probs=true asks it once" in screen) is is_told


@pytest.mark.parametrize("held_out", [pytest.param("null", marks=pytest.mark.gallery), "rows.jsonl"])
def test_a_stream_then_resume(arguments, tmp_path, held_out):
    config, overrides = arguments
    sets = ["data.streaming=true", "data.eval_rows=null", f"data.eval={held_out}", "shuffle_buffer_size=4"]
    outcome, screen = start(config, [*overrides, *sets, "max_steps=3"])
    assert len(outcome.samples) == 2
    assert "3 steps: 2 pairs x 1" in screen
    assert "train, the first rows of a stream: 12 rows" in screen
    result = CliRunner().invoke(app, ["resume", str(tmp_path / "run"), "--set", "max_steps=50"])
    assert result.exit_code == 0, result.output
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "grad_norm" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["num_stream_rows"] == 12


def test_answers_are_judged_shown_and_in_the_card(arguments, tmp_path):
    config, overrides = arguments
    (tmp_path / "judges_of_the_cli_test.py").write_text(
        "def longer(prompts, first, second):\n"
        "    return [len(a) > len(b) for a, b in zip(first, second, strict=True)]\n"
    )
    sets = ["generate_during_eval=true", "judge=judges_of_the_cli_test:longer", "num_eval_samples=3"]
    outcome, screen = start(config, [*overrides, *sets, "eval_max_new_tokens=6", "max_steps=2"])
    assert outcome.before["eval_win_rate"].mean == 0.5
    assert "step 0 · eval: 3 prompts answered" in screen
    assert screen.count("step 2 · eval: 3 prompts answered") == 1
    assert "eval_win_rate" in screen
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| `eval_win_rate` | 0.500 [" in card
    assert "judged by `judges_of_the_cli_test:longer`" in card
    assert "- `rows.jsonl`" in card


def test_a_hub_that_refuses_does_not_hide_what_came_of_the_run(arguments, tmp_path, monkeypatch):
    config, overrides = arguments
    screen = io.StringIO()
    with running_hub() as hub:
        hub.refuses_commits = True
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("transformers.utils.hub._hf_api", HfApi(endpoint=hub.url))
        sets = ["push_to_hub=true", "hub_model_id=me/tiny", "hub_strategy=end", "max_steps=1"]
        with pytest.raises(OSError, match="403"):
            run(load_runfile(config, [*overrides, *sets]), console=Console(file=screen, width=100))
    assert "Held out, with 95 % intervals" in screen.getvalue()
    assert (tmp_path / "run" / "README.md").is_file()
