"""`burnish preview` of a method that draws its own answers: the prompts as the policy gets them."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from run_place import save_model, write_rows
from typer.testing import CliRunner

from burnish import GRPOConfig, GRPOTrainer
from burnish.cli.app import app
from burnish.cli.preview import choose_rows, preview_rows, show
from burnish.cli.runfile import load_runfile
from burnish.report.tokens import CUT, PROMPT
from conftest import make_model, make_tokenizer

ROWS = [
    {"prompt": [{"role": "user", "content": "1 + 1 = [bold]\x1b[2J"}], "answer": "2"},
    {"prompt": [{"role": "user", "content": "a longer question than the others, 2 + 2 ="}], "answer": "4"},
    {"prompt": None, "answer": "0"},
    {"prompt": [{"role": "user", "content": "3 + 3 ="}], "answer": "6"},
]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run file beside a tokenizer and its model's configuration, without the weights."""
    monkeypatch.chdir(tmp_path)
    save_model("model")
    (tmp_path / "model" / "model.safetensors").unlink()
    write_rows("rows.jsonl", ROWS)
    path = tmp_path / "grpo.yaml"
    path.write_text(
        "method: grpo\nmodel: model\nrewards: number\ndata: {train: rows.jsonl}\ntraining: {max_prompt_length: 50}\n"
    )
    return path


def test_prompts_are_those_that_the_policy_gets(config):
    """Cut to their limit, a bad row named by its number; what was cut is shown."""
    options = {"output_dir": "out", "max_prompt_length": 50, "max_completion_length": 8, "on_bad_row": "drop"}
    trainer = GRPOTrainer(
        make_model(), "number", GRPOConfig(**options), train_dataset=ROWS, processing_class=make_tokenizer()
    )
    seen = preview_rows(load_runfile(config), choose_rows(10, None))
    assert {view.row_id: list(view.prompt.ids(PROMPT)) for view in seen.views} == {
        row["row_id"]: row["prompt_input_ids"] for row in trainer.prompts
    }
    assert [len(view.prompt.ids(CUT)) > 0 for view in seen.views] == [False, True, False]
    assert [bad.row for bad in seen.bad_rows] == [2]
    assert "  columns for the reward functions: answer" in seen.notes
    assert not any(view.completions for view in seen.views)


def test_they_are_a_table_with_their_ids(config):
    screen = io.StringIO()
    seen = preview_rows(load_runfile(config), choose_rows(5, "1,0"))
    show(seen, console=Console(file=screen, width=200))
    text = screen.getvalue()
    for view in seen.views:
        ids = view.prompt.ids(PROMPT)
        assert " ".join(map(str, ids[:10])) in text
        assert f"│   {view.row_id} │ " in text
    assert "‹<|im_start|>›" in text
    assert "1 + 1 = [bold]\\x1b[2J" in text
    assert "\x1b" not in text
    assert f"{len(seen.views[0].prompt.ids(CUT))} cut" in text


@pytest.mark.parametrize("is_full", [False, True])
def test_long_prompts_lose_their_middle_unless_asked_for(config, is_full):
    """500 bytes: the ids of 120 at the start and 40 at the end."""
    (config.parent / "long.jsonl").write_text(json.dumps({"prompt": "x" * 500, "answer": "1"}) + "\n")
    runfile = load_runfile(config, ["max_prompt_length=null", "data.train=long.jsonl"])
    screen = io.StringIO()
    show(preview_rows(runfile, choose_rows(1, None)), is_full=is_full, console=Console(file=screen, width=200))
    assert ("340 ids, shown by --full" in screen.getvalue()) is not is_full


def test_the_command_prints_json_and_writes_a_page(config):
    result = CliRunner().invoke(app, ["preview", "grpo.yaml", "--rows", "3", "--json", "--html", "p.html"])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["row_id"] == 3
    assert row["completions"] == []
    assert (config.parent / "p.html").read_text().count("<section>") == 1
    assert CliRunner().invoke(app, ["preview", "grpo.yaml", "--rows", "2"]).exit_code == 3
