"""The run directory: run.yaml, manifest.json, metrics.jsonl, events.jsonl, answers, and the lock. Its only writer."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from filelock import FileLock, Timeout
from pyarrow import parquet

from burnish.runtime.checkpoint import checkpoints, sync_directory
from burnish.runtime.jsonl import (
    Appender,
    Records,
    atomic_write_text,
    parse_line,
    plain,
    read_events,
    read_metrics,
)
from burnish.runtime.manifest import redact, redact_command

__all__ = ["Records", "RunDirectory", "RunExistsError", "RunLockedError", "atomic_write_text", "read_events"]
__all__ += ["read_metrics"]

CONFIG, MANIFEST, METRICS, EVENTS = "run.yaml", "manifest.json", "metrics.jsonl", "events.jsonl"
COMPLETIONS = "completions"
SUPERSEDED = "metrics.superseded.jsonl"
LOCK, LOCK_OWNER = "run.lock", "run.lock.json"

_RUN_FILES = re.compile(
    r"run\.yaml|manifest\.json|metrics(\.superseded)?\.jsonl|events\.jsonl|completions|report\.html"
    r"|(\.tmp-|\.old-)?checkpoint-\d+"
)


class RunExistsError(ValueError):
    """The directory already holds a run that is neither resumed nor overwritten."""


class RunLockedError(ValueError):
    """Another process is writing the run directory."""


class RunDirectory:
    """An open run directory: made by `open` in the main process, locked until `close` or its end."""

    def __init__(self, path: Path, lock: FileLock):
        self.path = path
        self._lock = lock
        self._metrics = Appender(path / METRICS)
        self._events = Appender(path / EVENTS)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        config: Mapping[str, Any],
        manifest: Mapping[str, Any],
        resume_step: int | None = None,
        overwrite: bool = False,
    ) -> RunDirectory:
        """Lock a directory and begin, resume or overwrite the run in it.

        Resumed, it keeps the first run.yaml and manifest.json, records the new manifest as event `resume`,
        and moves metrics of steps after `resume_step` to metrics.superseded.jsonl. Overwritten, the old run's
        own files (not models saved beside them) move to `previous-<n>/`.

        Args:
            path: the directory; made if it does not exist.
            config: the resolved configuration, for run.yaml; secrets are redacted, other objects become text.
            manifest: what `collect_manifest` returned.
            resume_step: the step of the checkpoint that the run continues from.
            overwrite: set an old run aside.

        Raises:
            RunExistsError: there is a run, and neither `resume_step` nor `overwrite` is given.
            RunLockedError: another process has the directory open.
            ValueError: both `resume_step` and `overwrite` are given.
        """
        if resume_step is not None and overwrite:
            raise ValueError(f"{path}: resume_step={resume_step} and overwrite=True contradict each other; drop one.")
        directory = Path(path)
        directory.mkdir(parents=True, exist_ok=True)
        run = cls(directory, _acquire(directory))
        try:
            run._begin(config, manifest, resume_step=resume_step, overwrite=overwrite)
        except BaseException:
            run.close()
            raise
        return run

    def metric(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to metrics.jsonl, with NaN and infinities as strings.

        Raises:
            TypeError: a value is not a number.
            ValueError: a name is `step` or `time`, which every line has.
        """
        if reserved := {"step", "time"} & values.keys():
            raise ValueError(f"metrics at step {step} may not be named {sorted(reserved)}: every line has these.")
        numbers: dict[str, int | float] = {}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"metric {name!r} at step {step} is a {type(value).__name__}; use float(...).")
            numbers[name] = int(value) if isinstance(value, Integral) else float(value)
        self._metrics.append({"step": step, "time": time.time(), **numbers})

    def event(self, kind: str, /, **fields: Any) -> None:
        """Append one line to events.jsonl: the kind, the time, and `fields` as plain JSON.

        Raises:
            ValueError: a field is called `kind` or `time`.
        """
        if reserved := {"kind", "time"} & fields.keys():
            raise ValueError(f"event {kind!r} may not have the fields {sorted(reserved)}: every line has these.")
        self._events.append({"kind": kind, "time": time.time(), **fields})

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]], *, name: str = "") -> str:
        """Write answers as a table, whole or not at all, in place of one that is there.

        Args:
            step: optimizer steps of the policy that gave them.
            rows: all with the same columns.
            name: of the data set, where there are several tables of a step.

        Returns:
            The file's path in the run directory.
        """
        path = self.path / COMPLETIONS / f"step-{step:06d}{f'-{name}' if name else ''}.parquet"
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        with temporary.open("wb") as file:
            parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
        return path.relative_to(self.path).as_posix()

    def close(self) -> None:
        """Close the files and let go of the lock; a second call does nothing."""
        self._metrics.close()
        self._events.close()
        if self._lock.is_locked:
            (self.path / LOCK_OWNER).unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(
        self,
        config: Mapping[str, Any],
        manifest: Mapping[str, Any],
        *,
        resume_step: int | None,
        overwrite: bool,
    ) -> None:
        if overwrite:
            _set_aside(self.path)
        elif resume_step is None and _holds_run(self.path):
            raise RunExistsError(_describe(self.path))
        made_with = plain(redact(manifest))
        first = {CONFIG: _yaml(config), MANIFEST: json.dumps(made_with, indent=1, allow_nan=False) + "\n"}
        for name, text in first.items():
            if not (self.path / name).exists():
                atomic_write_text(self.path / name, text)
        if resume_step is not None:
            superseded, torn = _supersede(self.path, resume_step)
            torn_events = len(read_events(self.path / EVENTS).torn)
            counts = {"superseded_metrics": superseded, "torn_metrics": torn, "torn_events": torn_events}
            self.event("resume", step=resume_step, **counts, manifest=made_with)


def _acquire(directory: Path) -> FileLock:
    lock = FileLock(directory / LOCK, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        owner = _read_json(directory / LOCK_OWNER)
        raise RunLockedError(
            f"{directory} is being written by process {owner.get('pid', '?')} "
            f"on host {owner.get('host', '?')} ({owner.get('command', 'command unknown')}).\n"
            "Two processes in one run directory would mix their steps and delete each other's checkpoints.\n"
            "Fix: wait for that process, stop it, or set another output_dir."
        ) from error
    command = shlex.join(redact_command(sys.argv))
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "time": time.time()}
    try:
        atomic_write_text(directory / LOCK_OWNER, json.dumps(owner) + "\n")
    except BaseException:
        lock.release()
        raise
    return lock


def _holds_run(directory: Path) -> bool:
    return (directory / CONFIG).exists() or (directory / METRICS).exists() or bool(checkpoints(directory))


def _describe(directory: Path) -> str:
    steps = [record["step"] for record in read_metrics(directory / METRICS) if isinstance(record.get("step"), int)]
    found = checkpoints(directory)
    command = _read_json(directory / MANIFEST).get("command")
    return (
        f"{directory.resolve()} already holds a run: last logged step {max(steps, default='none')}, "
        f"{len(found)} checkpoints{f', newest {found[0].name}' if found else ''}"
        f"{f', started as: {shlex.join(map(str, command))}' if isinstance(command, list) else ''}.\n"
        "Fix, one of:\n"
        "- resume it: resume_from_checkpoint=True\n"
        "- leave it alone: another output_dir\n"
        f"- set it aside in {_unused(directory).name}/ and start anew: overwrite_output_dir=True"
    )


def _set_aside(directory: Path) -> None:
    old = [path for path in sorted(directory.iterdir()) if _RUN_FILES.fullmatch(path.name)]
    if not old:
        return
    previous = _unused(directory)
    previous.mkdir()
    for path in old:
        path.rename(previous / path.name)
    sync_directory(directory)


def _unused(directory: Path) -> Path:
    number = 1
    while (directory / f"previous-{number}").exists():
        number += 1
    return directory / f"previous-{number}"


def _supersede(directory: Path, resume_step: int) -> tuple[int, int]:
    """Move metrics of later steps, and torn lines, out of metrics.jsonl; returns how many of each.

    The copy is written first: a crash in between repeats lines in metrics.superseded.jsonl and loses none.
    """
    path = directory / METRICS
    lines = [line for line in path.read_bytes().splitlines() if line.strip()] if path.exists() else []
    kept, later, torn = [], [], []
    for line in lines:
        step = (parse_line(line) or {}).get("step")
        (torn if not isinstance(step, int) else later if step > resume_step else kept).append(line)
    if later or torn:
        with (directory / SUPERSEDED).open("ab") as file:
            file.write(b"".join(line + b"\n" for line in [*later, *torn]))
            file.flush()
            os.fsync(file.fileno())
        atomic_write_text(path, b"".join(line + b"\n" for line in kept).decode())
    return len(later), len(torn)


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(plain(redact(config), of_non_finite=float), sort_keys=False, allow_unicode=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse_line(path.read_bytes()) or {}
    except OSError:
        return {}
