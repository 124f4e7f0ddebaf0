from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from burnish.cli import estimates
from burnish.cli.app import app
from burnish.cli.checkup import check_up, summary
from burnish.cli.errors import DATA, OK, STORAGE, USAGE
from burnish.cli.runfile import RunFileError
from conftest import make_model, make_rows

GOOD = "model: model\ndata: {train: rows.jsonl}\ntraining: {max_steps: 3}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a run file beside a tiny model and twelve rows, and go there."""
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)))
    monkeypatch.chdir(tmp_path)

    def write(text=GOOD, rows=None):
        (tmp_path / "run.yaml").write_text(text)
        if rows is not None:
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return "run.yaml"

    return write


def invoke(*arguments):
    return CliRunner().invoke(app, ["check", *arguments])


def test_a_sound_run(write):
    found = check_up(write())
    assert (found.problems, found.warnings, found.exit_code) == ((), (), OK)
    assert summary(found.runfile).startswith("run.yaml is sound: dpo on model")
    assert found.lines[0] == "data.train: rows.jsonl, the first 12 of 12 rows checked: 12 messages"
    assert found.size.num_parameters == make_model().num_parameters()
    result = invoke("run.yaml")
    assert result.exit_code == 0
    for start in ("run.yaml is sound", "data.train:", "model:", "memory: about", "output:"):
        assert any(line.startswith(start) for line in result.output.splitlines())


def test_faults_of_file_rows_model_and_disk_come_in_one_pass(write):
    rows = make_rows(12)
    rows[3]["chosen"] = None
    rows[7]["rejected"] = rows[7]["chosen"]
    path = write("model: model\ndata: {train: rows.jsonl, eval: gone.jsonl}\ntraining: {bta: 1, save_steps: 0}\n", rows)
    with open("rows.jsonl", "a") as file:
        file.write("{broken\n")
    weights = Path("model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-10])
    found = check_up(path)
    keys = [problem.split(": ")[0] for problem in found.problems]
    assert keys == [
        "line 2, data.eval",
        "line 3, training.bta",
        "line 3, training.save_steps",
        "model",
        "data.train",
        "data.train",
        "data.train",
    ]
    assert "line 13 (row 12), is no JSON" in found.problems[4]
    assert "row 3, column 'chosen': is missing" in found.problems[5]
    assert "row 7, column 'rejected': is the same as chosen" in found.problems[6]
    assert found.exit_code == USAGE
    result = invoke(path)
    assert result.exit_code == USAGE
    assert "run.yaml: 7 problems" in result.output


def test_exit_codes_tell_the_kind_of_fault(write, monkeypatch):
    bad = [{**row, "chosen": None} for row in make_rows(12)]
    assert check_up(write(rows=bad)).exit_code == DATA
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    found = check_up(write(rows=make_rows(12)))
    assert found.exit_code == STORAGE
    assert "set save_total_limit" in found.problems[0]
    assert invoke("run.yaml").exit_code == STORAGE


def test_many_bad_rows_are_counted_and_the_first_named(write):
    found = check_up(write(rows=[{**row, "chosen": None} for row in make_rows(12)]))
    assert len(found.data_problems) == 9
    assert found.data_problems[-1] == "data.train: … and 4 more"


def test_rows_that_will_be_dropped_are_no_fault_unless_all_are(write):
    rows = make_rows(12)
    rows[3]["chosen"] = None
    path = write(GOOD.replace("max_steps: 3", "max_steps: 3, on_bad_row: drop"), rows)
    found = check_up(path)
    assert found.exit_code == OK
    assert "  1 of them will be dropped:" in found.lines
    assert any("row 3, column 'chosen'" in line for line in found.lines)
    assert check_up(write((GOOD.replace("max_steps: 3", "on_bad_row: drop")), rows[3:4])).exit_code == DATA


def test_held_out_rows_must_leave_some(write):
    (problem,) = check_up(write(GOOD.replace("rows.jsonl}", "rows.jsonl, eval_rows: 12}"))).problems
    assert problem == "data.eval_rows: is 12; allowed: 1 to 11, of 12 rows"


def test_a_length_that_no_row_can_have(write):
    (problem,) = check_up(write(GOOD.replace("max_steps: 3", "max_length: 1"))).problems
    assert "training.max_length: is 1; allowed: a whole number, 2 or more, or null" in problem


def test_an_output_directory_that_is_a_file(write, tmp_path):
    (tmp_path / "taken").write_text("")
    for name in ("taken", "taken/run"):
        found = check_up(write(GOOD), [f"output_dir={tmp_path / name}"])
        assert found.storage_problems == (
            f"training.output_dir: {tmp_path / 'taken'} is a file: name another directory",
        )
        assert found.exit_code == STORAGE


def test_what_is_not_here_is_said(write):
    found = check_up(write("model: owner/model\ndata: {train: owner/rows}\n"))
    assert found.exit_code == OK
    assert found.lines == (
        "data.train: owner/rows is a name on the hub; its rows are looked at when the run begins",
        "model: owner/model is not here to be read, so memory and disk are not estimated",
    )


def test_json(write):
    rows = make_rows(12)
    rows[3]["chosen"] = [{"role": "\x1b[2J", "content": "a"}]
    result = invoke(write(rows=rows), "--json")
    assert result.exit_code == DATA
    told = json.loads(result.stdout)
    assert "\x1b" not in result.stdout
    assert (told["is_sound"], told["problems"]["file"]) == (False, [])
    assert told["run"]["training"] == {"max_steps": 3}
    assert [bad["row"] for bad in told["sources"][0]["bad_rows"]] == [3]
    assert told["memory"]["total"] == sum(told["memory"]["parts"].values())
    assert told["disk"]["num_checkpoints"] == 1


def test_a_file_that_is_not_there(write):
    with pytest.raises(RunFileError, match="there is no such file"):
        check_up("gone.yaml")
    assert invoke("gone.yaml").exit_code == USAGE


@pytest.mark.parametrize(
    "text", ["- 1\n", "model: [1]\ndata: 3\n", "data: {train: [1]}\ntraining: 5\nmethod: {a: 1}\n", "model: {}\n"]
)
def test_any_document_is_a_usage_error(write, text):
    assert check_up(write(text)).exit_code == USAGE


def test_too_little_memory_is_a_warning(write, monkeypatch):
    monkeypatch.setattr(estimates, "memory_bytes", lambda: 1000)
    found = check_up(write())
    assert found.exit_code == OK
    assert "memory may not suffice: set a lower token_budget" in found.warnings[0]
    assert "warning: memory may not suffice" in invoke("run.yaml").output


def test_hostile_rows_and_names_do_not_reach_the_terminal(write):
    rows = make_rows(3)
    rows[1] = {**rows[1], "chosen": None, "\x1b[2J<b>": 1}
    result = invoke(write(rows=rows))
    assert result.exit_code == DATA
    assert "\x1b" not in result.output
    assert "\\x1b[2J<b>" in result.output


def test_a_check_imports_no_torch(write, tmp_path):
    rows = make_rows(3)
    rows[1]["chosen"] = None
    write(rows=rows)
    code = (
        "import sys\nfrom burnish.cli.checkup import check_up\nassert check_up('run.yaml').problems\n"
        "print([name for name in ('torch', 'transformers', 'accelerate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
