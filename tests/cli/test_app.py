from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from burnish.cli import app as cli
from burnish.cli.errors import STORAGE, exit_code, shown_to_user
from burnish.data.errors import DataError
from burnish.runtime.guard import DivergedError
from burnish.runtime.tree import CheckpointError

LIGHT = (
    ["--help"],
    ["train", "--help"],
    ["resume", "--help"],
    ["preview", "--help"],
    ["init", "dpo", "--all"],
    ["--version"],
)
TORCH_FREE = """
import json, sys
from burnish.cli.app import main
commands, modules = map(json.loads, sys.argv[1:])
for arguments in commands:
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
    assert not [name for name in modules if name in sys.modules], arguments
    print("END OF A COMMAND")
"""


def invoke(*arguments):
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.mark.parametrize(
    ("commands", "modules"),
    [
        (LIGHT, ("torch", "transformers", "datasets", "numpy")),
        ([["check", "recipe:dpo"]], ("torch", "transformers", "accelerate")),
    ],
    ids=["help and init", "check"],
)
def test_help_init_and_check_import_nothing_heavy(commands, modules):
    """One process for all, since what one command imported is still there after the next."""
    arguments = map(json.dumps, (commands, modules))
    done = subprocess.run([sys.executable, "-c", TORCH_FREE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *outputs, rest = done.stdout.split("END OF A COMMAND")
    assert len(outputs) == len(commands)
    assert all(output.strip() for output in outputs)
    assert not rest.strip()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (DataError("x"), 3),
        (DivergedError("x"), 5),
        (CheckpointError("x"), 6),
        (OSError(28, "No space left on device"), 6),
        (FileNotFoundError(2, "none"), 2),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_errors_of_users_have_no_traceback_and_no_markup(capsys):
    with pytest.raises(cli.typer.Exit) as end, shown_to_user(debug=False):
        raise ValueError("[bold]not bold[/bold] \x1b[2J [/]")
    assert end.value.exit_code == 2
    shown = capsys.readouterr().err
    assert "Error: [bold]not bold[/bold] \\x1b[2J [/]" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(("error", "debug"), [(ValueError("x"), True), (RuntimeError("x"), False)])
def test_our_own_errors_and_debug_have_a_traceback(capsys, error, debug):
    with pytest.raises(cli.typer.Exit), shown_to_user(debug=debug):
        raise error
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_runfile", interrupted)
    assert invoke("train", "recipe:dpo").exit_code == 130


def test_a_bad_run_file_is_a_usage_error(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("model: a\ndata: {train: b}\ntraining: {bta: 1}\n")
    for command in ("check", "train"):
        result = invoke(command, str(path))
        assert result.exit_code == 2
        assert "did you mean 'beta'" in result.output


def test_check_says_what_it_understood():
    result = invoke("check", "recipe:dpo", "--set", "beta=0.2", "--json")
    assert result.exit_code == 0
    assert json.loads(result.output)["run"]["training"]["beta"] == 0.2


def test_no_run_directory(tmp_path):
    result = invoke("resume", str(tmp_path))
    assert result.exit_code == 2
    assert "no run directory" in result.output


def test_a_run_started_from_python_is_continued_there(tmp_path):
    (tmp_path / "run.yaml").write_text("training: {}\n")
    result = invoke("resume", str(tmp_path))
    assert result.exit_code == 2
    assert "trainer.train(resume_from_checkpoint=True)" in result.output


def test_a_file_of_weights_that_cannot_be_read_or_written_is_a_matter_of_storage(tmp_path):
    with pytest.raises(SafetensorError) as found:
        save_file({"weight": torch.zeros(1)}, tmp_path / "no such directory" / "model.safetensors")
    assert exit_code(found.value) == STORAGE
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SafetensorError) as found:
        load_file(tmp_path / "model.safetensors")
    assert exit_code(found.value) == STORAGE


def test_a_run_without_checkpoints_cannot_be_continued(tmp_path):
    (tmp_path / "run.yaml").write_text("model: a\ndata: {train: b}\n")
    result = invoke("resume", str(tmp_path))
    assert result.exit_code == 6
    assert "there is no checkpoint" in result.output


def test_env_names_the_versions():
    result = invoke("env")
    assert result.exit_code == 0
    assert "torch: " in result.output
