from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from run_place import save_model, write_rows
from typer.testing import CliRunner

from burnish import DPOConfig, DPOTrainer
from burnish.cli.app import app
from burnish.cli.preview import MAX_ROWS, choose_rows, preview_rows, show, write_page
from burnish.cli.runfile import load_runfile
from burnish.data.sources import load_rows
from burnish.models.load import load_end_token_ids
from burnish.report.tokens import CUT, PROMPT, TRAINED, UNTRAINED
from conftest import make_model, make_rows
from vision_models import FAMILIES, make_image, make_processor, make_vision_model

LIMITS = {"max_length": 70, "max_prompt_length": 50}
HOSTILE = "<script>alert(1)</script>\x1b[2J\x1b]8;;http://x\x07 [bold]"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run file beside a tiny model, whose weights are then taken away, and its rows."""
    save_model(tmp_path / "model")
    rows = [*make_rows(11), {**make_rows(1)[0], "chosen": [{"role": "assistant", "content": HOSTILE}]}]
    write_rows(tmp_path / "rows.jsonl", rows)
    path = tmp_path / "dpo.yaml"
    path.write_text(
        "model: model\ndata: {train: rows.jsonl}\n"
        "training: {max_length: 70, max_prompt_length: 50, output_dir: out, cpu_tuning: 'off', report_to: none}\n"
    )
    monkeypatch.chdir(tmp_path)
    return path


def without_weights(tmp_path):
    (tmp_path / "model" / "model.safetensors").unlink()


def test_every_row_is_what_the_trainer_trains_on(config, tmp_path):
    args = DPOConfig(output_dir="out", **LIMITS, per_device_train_batch_size=12, cpu_tuning="off", report_to="none")
    trainer = DPOTrainer("model", args, train_dataset=load_rows("rows.jsonl"))
    (batch,) = list(trainer.get_train_dataloader())
    without_weights(tmp_path)
    seen = preview_rows(load_runfile(config), choose_rows(12, None))
    assert seen.end_token_ids == trainer.end_token_ids
    assert sorted(view.row_id for view in seen.views) == sorted(set(batch.row_id.tolist())) == list(range(12))
    views = {view.row_id: view for view in seen.views}
    for row in range(len(batch)):
        view, prompt = views[int(batch.row_id[row])], int(batch.prompt_index[row])
        passage = view.completions[row - 2 * prompt]
        assert view.prompt.ids(PROMPT) == tuple(batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist())
        assert passage.ids(TRAINED) == tuple(batch.completion_ids[row][batch.loss_mask[row]].tolist())
        assert passage.ids(TRAINED, UNTRAINED) == tuple(batch.completion_ids[row][batch.completion_mask[row]].tolist())
    assert any(passage.ids(CUT) for view in seen.views for passage in (view.prompt, *view.completions))


def test_hostile_rows_are_inert_on_every_surface(config, tmp_path):
    without_weights(tmp_path)
    seen = preview_rows(load_runfile(config, ["max_length=null"]), choose_rows(5, "11"))
    assert HOSTILE in seen.views[0].completions[0].segments[0].text
    screen = io.StringIO()
    show(seen, console=Console(file=screen, width=200))
    assert "<script>alert(1)</script>\\x1b[2J\\x1b]8;;http://x\\x07 [bold]" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()
    write_page(seen, tmp_path / "pages" / "p.html")
    page = (tmp_path / "pages" / "p.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "\x1b" not in page
    result = CliRunner().invoke(app, ["preview", str(config), "--rows", "11", "--json"])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout
    assert json.loads(result.stdout)["rows"][0]["row_id"] == 11


def test_the_command_shows_and_writes(config, tmp_path):
    without_weights(tmp_path)
    result = CliRunner().invoke(app, ["preview", str(config), "-n", "3", "--html", "p.html"])
    assert result.exit_code == 0, result.output
    assert "3 of 12 rows of rows.jsonl" in result.output
    assert [f"row {row}" in result.output.splitlines() for row in (0, 4, 8, 1)] == [True, True, True, False]
    assert "written: p.html" in result.output
    assert (tmp_path / "p.html").read_text().count("<section>") == 3


def test_bad_rows_are_named_by_their_own_number(config, tmp_path):
    without_weights(tmp_path)
    rows = [*make_rows(3), {**make_rows(1)[0], "rejected": make_rows(1)[0]["chosen"]}]
    write_rows(tmp_path / "rows.jsonl", rows)
    seen = preview_rows(load_runfile(config), choose_rows(5, "3,1"))
    assert [(bad.row, bad.problem) for bad in seen.bad_rows] == [(3, "is the same as chosen")]
    assert [view.row_id for view in seen.views] == [1]
    assert any(line.startswith("cannot be trained on: row 3, column 'rejected'") for line in seen.lines)
    (alone,) = preview_rows(load_runfile(config), choose_rows(5, "3")).bad_rows
    assert alone.row == 3
    assert CliRunner().invoke(app, ["preview", str(config), "--rows", "3"]).exit_code == 3
    assert CliRunner().invoke(app, ["preview", str(config), "--rows", "3,1"]).exit_code == 0


def test_rows_of_a_split_have_the_numbers_of_training(config, tmp_path):
    without_weights(tmp_path)
    seen = preview_rows(load_runfile(config, ["data.eval_rows=4"]), choose_rows(MAX_ROWS, None))
    assert [view.row_id for view in seen.views] == list(range(8))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_shown_by_their_tokens(tmp_path, monkeypatch, family):
    processor = make_processor(family)
    make_vision_model(family, processor).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    without_weights(tmp_path)
    make_image(16, 16).save(tmp_path / "image.png")
    rows = [{**row, "images": ["image.png"] if index == 0 else []} for index, row in enumerate(make_rows(2))]
    write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "dpo.yaml").write_text("model: model\ndata: {train: rows.jsonl}\n")
    monkeypatch.chdir(tmp_path)
    with_image, without = preview_rows(load_runfile("dpo.yaml"), choose_rows(5, None)).views
    assert (with_image.has_images, without.has_images) == (True, False)
    token = processor.image_token_id
    assert (with_image.prompt.ids(PROMPT).count(token) > 1, token in without.prompt.ids(PROMPT)) == (True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "0"], "allowed: 1 to 100"),
        (["--rows", "3,x"], "whole numbers with commas"),
        (["--rows", "12"], "there is no row 12; allowed: 0 to 11"),
        (["--rows", ""], "whole numbers with commas"),
    ],
)
def test_wrong_choices_are_usage_errors(config, tmp_path, arguments, message):
    without_weights(tmp_path)
    result = CliRunner().invoke(app, ["preview", str(config), *arguments])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("eos", [2, [2, 7]])
@pytest.mark.parametrize("has_file", [True, False])
def test_end_tokens_are_those_of_the_loaded_model(tmp_path, tokenizer, eos, has_file):
    model = make_model(eos_token_id=eos)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if not has_file:
        (tmp_path / "generation_config.json").unlink()
    trainer = DPOTrainer(str(tmp_path), DPOConfig(output_dir=str(tmp_path / "out"), report_to="none"))
    assert (
        load_end_token_ids(str(tmp_path), trainer.tokenizer) == trainer.end_token_ids == ((2, 7) if eos != 2 else (2,))
    )


def test_rows_of_several_sources(config, tmp_path):
    other = make_rows(20)[15:]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({**row, "weight": 1}) + "\n" for row in other))
    sources = "data.train=[{path: rows.jsonl, weight: 1}, {path: other.jsonl, weight: 2}]"
    seen = preview_rows(load_runfile(config, [sources]), choose_rows(3, None))
    assert "3 of 12 rows of rows.jsonl and 3 of 5 rows of other.jsonl" in seen.title
    assert [view.row_id for view in seen.views] == [0, 4, 8, 0, 1, 3]
    assert {"rows:", "other:"} <= set(seen.notes)


def test_the_first_rows_of_a_stream(config):
    seen = preview_rows(load_runfile(config, ["data.streaming=true", "max_steps=2"]), choose_rows(3, None))
    assert "3 of 12 rows of rows.jsonl" in seen.title
    assert len(seen.views) == 3
