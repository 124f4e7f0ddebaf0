"""A run directory -> the run file that continues its run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from burnish.cli.runfile import RunFile, RunFileError, load_runfile
from burnish.cli.yamlfile import YamlError, parse_yaml
from burnish.runtime.checkpoint import CheckpointError, newest_sound
from burnish.runtime.rundir import CONFIG
from burnish.runtime.terminal import visible


def load_run_directory(run_dir: Path, overrides: Sequence[str] = ()) -> RunFile:
    """The run file of a directory, set to continue in that very directory. Says which checkpoint it takes, and why.

    Raises:
        RunFileError: the directory has no run.yaml, or one that does not say model and data.
        CheckpointError: no checkpoint is sound.
    """
    config = run_dir / CONFIG
    if not config.is_file():
        raise RunFileError(str(config), ["there is no such file, so this is no run directory"])
    try:
        stored = parse_yaml(config.read_text(encoding="utf-8")).value
    except YamlError as error:
        raise RunFileError(str(config), [f"this is no YAML of plain values: {error}"]) from error
    if not isinstance(stored, dict) or "model" not in stored:
        raise RunFileError(
            str(config),
            [
                "names no model: the run was started from Python. "
                "Continue it there, with trainer.train(resume_from_checkpoint=True)"
            ],
        )
    runfile = load_runfile(config, overrides)
    _choose_checkpoint(run_dir)
    return replace(runfile, training={**runfile.training, "output_dir": str(run_dir)})


def _choose_checkpoint(run_dir: Path) -> None:
    skipped: list[str] = []
    found = newest_sound(
        run_dir, on_skip=lambda path, problems: skipped.append(f"{path.name} is damaged: {problems[0]}")
    )
    for line in skipped:
        typer.echo(visible(line))
    if found is None:
        damaged = "every checkpoint is damaged" if skipped else "there is no checkpoint"
        raise CheckpointError(
            f"{run_dir}: {damaged}, so there is nothing to continue from.\n"
            f"Start anew: burnish train {shlex.quote(str(run_dir / CONFIG))} --set overwrite_output_dir=true"
        )
    typer.echo(
        visible(f"Continuing from {found.name}: the newest of {run_dir} whose files are all as they were written.")
    )
