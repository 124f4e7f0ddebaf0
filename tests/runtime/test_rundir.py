"""The run directory: one writer, strict lines, nothing lost and nothing repeated."""

from __future__ import annotations

import enum
import errno
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pyarrow import parquet

from burnish.runtime import jsonl, rundir
from burnish.runtime.rundir import (
    RunDirectory,
    RunExistsError,
    RunLockedError,
    atomic_write_text,
    read_events,
    read_metrics,
)

CONFIG = {"seed": 1, "beta": 0.1}
MANIFEST = {"command": ["train", "a b"], "seed": 1}


def open_run(path: Path, **kwargs) -> RunDirectory:
    return RunDirectory.open(path, **{"config": CONFIG, "manifest": MANIFEST, **kwargs})


def make_run(path: Path, steps: int = 5) -> None:
    with open_run(path) as run:
        for step in range(1, steps + 1):
            run.metric(step, {"loss": 1 / step})
        run.event("save", step=steps)
    (path / f"checkpoint-{steps}").mkdir()


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} - {"run.lock"}


def test_a_new_run(tmp_path):
    make_run(tmp_path / "run")
    assert names(tmp_path / "run") == {
        "run.yaml",
        "manifest.json",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoint-5",
    }
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text()) == CONFIG
    assert json.loads((tmp_path / "run" / "manifest.json").read_text()) == MANIFEST
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5]
    assert metrics[1]["loss"] == 0.5
    assert metrics.torn == ()
    (event,) = read_events(tmp_path / "run" / "events.jsonl")
    assert (event["kind"], event["step"]) == ("save", 5)
    assert event["time"] > 1e9


class Strategy(str, enum.Enum):  # as transformers defines its own
    STEPS = "steps"


def test_run_yaml_is_plain_ordered_and_without_secrets(tmp_path):
    shared = [1, 2]
    config = {
        "z": 1,
        "a": Strategy.STEPS,
        "path": Path("x/y"),
        "betas": (0.9, np.float64(0.95)),
        "count": np.int64(3),
        "dtype": torch.bfloat16,
        "reward": math.sqrt,
        "limit": math.inf,
        "lists": {"one": shared, "two": shared},
        "hub_token": "hf_abc",
        "pad_token": "<pad>",
        "answer": "no",
        "text": "ü\n: #",
        "none": None,
    }
    open_run(tmp_path, config=config).close()
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    assert "hf_abc" not in text
    assert "&" not in text
    loaded = yaml.safe_load(text)
    assert list(loaded) == list(config)
    assert loaded == {
        **{key: config[key] for key in ("z", "limit", "lists", "pad_token", "answer", "text", "none")},
        "a": "steps",
        "path": "x/y",
        "betas": [0.9, 0.95],
        "count": 3,
        "dtype": "torch.bfloat16",
        "reward": "math.sqrt",
        "hub_token": "<redacted>",
    }


def test_an_old_run_is_named_with_three_fixes(tmp_path):
    make_run(tmp_path)
    with pytest.raises(RunExistsError) as caught:
        open_run(tmp_path)
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for part in (str(tmp_path), "last logged step 5", "newest checkpoint-5", "started as: train 'a b'",
                 "resume_from_checkpoint=True", "another output_dir", "overwrite_output_dir=True", "previous-1"):  # fmt: skip
        assert part in message
    assert len(message.splitlines()) <= 12
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5
    open_run(tmp_path, resume_step=5).close()  # the refusal let go of the lock


@pytest.mark.parametrize("name", ["run.yaml", "metrics.jsonl", "checkpoint-3/"])
def test_each_trace_of_a_run_is_one(tmp_path, name):
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("")
    with pytest.raises(RunExistsError):
        open_run(tmp_path)


def test_a_directory_without_a_run_is_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    open_run(tmp_path).close()
    assert names(tmp_path) == {"notes.txt", "run.yaml", "manifest.json"}


def test_overwrite_deletes_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("{}")
    make_run(tmp_path)
    for number in (1, 2):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".jsonl", ".yaml")}
        with open_run(tmp_path, overwrite=True, config={"round": number}) as run:
            run.metric(1, {"loss": float(number)})
        previous = tmp_path / f"previous-{number}"
        assert {name: (previous / name).read_bytes() for name in before} == before
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert (tmp_path / "previous-1" / "checkpoint-5").is_dir()
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {"round": 2}
    assert {"notes.txt", "config.json", "previous-1", "previous-2"} <= names(tmp_path)
    with pytest.raises(ValueError, match="contradict each other"):
        open_run(tmp_path, overwrite=True, resume_step=1)


def test_resume_keeps_the_first_files_and_never_repeats_a_step(tmp_path):
    make_run(tmp_path)
    with open_run(tmp_path, resume_step=3, config={"seed": 2}, manifest={"seed": 2}) as run:
        for step in (4, 5, 6):
            run.metric(step, {"loss": 9.0})
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == CONFIG
    assert json.loads((tmp_path / "manifest.json").read_text()) == MANIFEST
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3), (4, 9.0), (5, 9.0), (6, 9.0)]  # fmt: skip
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.superseded.jsonl")] == [4, 5]
    resumed = read_events(tmp_path / "events.jsonl")[-1]
    assert (resumed["kind"], resumed["step"], resumed["manifest"]) == ("resume", 3, {"seed": 2})
    assert (resumed["superseded_metrics"], resumed["torn_metrics"], resumed["torn_events"]) == (2, 0, 0)


def test_resume_into_an_empty_directory_writes_the_files(tmp_path):
    open_run(tmp_path, resume_step=3).close()
    assert {"run.yaml", "manifest.json", "events.jsonl"} <= names(tmp_path)


def test_a_line_torn_at_any_byte_is_skipped_reported_and_moved(tmp_path):
    make_run(tmp_path / "whole", steps=2)
    for name, read in (("metrics.jsonl", read_metrics), ("events.jsonl", read_events)):
        whole = (tmp_path / "whole" / name).read_bytes()
        last = whole.splitlines(keepends=True)[-1]
        for cut in range(1, len(last) - 1):
            (tmp_path / name).write_bytes(whole[: len(whole) - len(last) + cut])
            records = read(tmp_path / name)
            assert records.torn == (last[:cut].decode(),)
            assert len(records) == whole.count(b"\n") - 1
    with open_run(tmp_path, resume_step=2) as run:
        run.metric(3, {"loss": 1.0})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert read_metrics(tmp_path / "metrics.jsonl").torn == ()
    (resumed,) = read_events(tmp_path / "events.jsonl")
    assert (resumed["torn_metrics"], resumed["torn_events"]) == (1, 1)
    assert len(read_metrics(tmp_path / "metrics.superseded.jsonl").torn) == 1


def test_lines_are_strict_json_with_nan_and_infinity(tmp_path):
    def refuse(name: str) -> None:
        raise AssertionError(name)

    values = {
        "nan": math.nan,
        "up": math.inf,
        "down": -math.inf,
        "count": np.int64(3),
        "half": np.float32(0.5),
    }
    with open_run(tmp_path) as run:
        run.metric(1, values)
        run.event("guard", step=1, loss=math.nan, rows=[1, 2], where=Path("a"), odd=torch.float16)
    for name in ("metrics.jsonl", "events.jsonl"):
        for line in (tmp_path / name).read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    (record,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(record["nan"])
    assert (record["up"], record["down"], record["count"], record["half"]) == (math.inf, -math.inf, 3, 0.5)
    assert type(record["count"]) is int
    (event,) = read_events(tmp_path / "events.jsonl")
    assert (event["loss"], event["rows"], event["where"], event["odd"]) == (
        "NaN",
        [1, 2],
        "a",
        "torch.float16",
    )


def test_wrong_records_are_refused(tmp_path):
    with open_run(tmp_path) as run:
        with pytest.raises(TypeError, match="metric 'loss' at step 2 is a str"):
            run.metric(2, {"loss": "0.1"})  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="is a Tensor"):
            run.metric(2, {"loss": torch.tensor(1.0)})  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=r"may not be named \['step'\]"):
            run.metric(2, {"step": 1})
        with pytest.raises(ValueError, match=r"may not have the fields \['time'\]"):
            run.event("save", time=1)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_each_line_is_there_when_the_call_returns(tmp_path):
    with open_run(tmp_path) as run:
        for step in range(1, 4):
            run.metric(step, {"loss": 0.0})
            assert len(read_metrics(tmp_path / "metrics.jsonl")) == step


def test_a_full_disk_tears_one_line_and_names_the_file(tmp_path, monkeypatch):
    write = os.write
    with open_run(tmp_path) as run:
        run.metric(1, {"loss": 1.0})
        with monkeypatch.context() as patch:
            budget = [10]

            def full(descriptor, line):
                if budget[0] == 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                count, budget[0] = budget[0], 0
                return write(descriptor, line[:count])

            patch.setattr(jsonl.os, "write", full)
            with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
                run.metric(2, {"loss": 1.0})
        run.metric(3, {"loss": 1.0})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 3]
    assert len(records.torn) == 1


def test_absent_and_damaged_files_are_read(tmp_path):
    assert read_metrics(tmp_path / "absent") == []
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n\n{"step": 2}\n' + bytes(20))
    records = read_metrics(tmp_path / "m.jsonl")
    assert [record["step"] for record in records] == [1, 2]
    assert len(records.torn) == 3


def test_atomic_write_leaves_the_old_text_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "run.yaml"
    atomic_write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            atomic_write_text(path, "new")
    assert path.read_text() == "old"
    atomic_write_text(path, "new")
    assert path.read_text() == "new"


def test_the_same_directory_opens_once_in_a_process(tmp_path):
    with open_run(tmp_path), pytest.raises(RunLockedError, match=f"process {os.getpid()} "):
        open_run(tmp_path, resume_step=0)
    run = open_run(tmp_path, resume_step=0)
    run.close()
    run.close()


HOLDER = """
import sys, time
from burnish.runtime.rundir import RunDirectory
run = RunDirectory.open(sys.argv[1], config={}, manifest={})
run.metric(1, {"loss": 1.0})
print("ready", flush=True)
time.sleep(100)
"""


def test_a_second_process_is_told_the_first_and_may_follow_its_death(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(rundir.__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "--hub_token", "hf_abc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "ready\n"
            with pytest.raises(RunLockedError) as caught:
                open_run(tmp_path, resume_step=1)
        finally:
            holder.kill()
    message = str(caught.value)
    assert f"process {holder.pid} on host {socket.gethostname()}" in message
    assert "hf_abc" not in message
    assert "another output_dir" in message
    with open_run(tmp_path, resume_step=1) as run:
        run.metric(2, {"loss": 0.5})
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_answers_are_written_whole_and_replace_those_of_the_same_step(tmp_path):
    with RunDirectory.open(tmp_path, config={}, manifest={}) as run:
        assert run.completions(10, [{"row_id": 1, "score": None}]) == "completions/step-000010.parquet"
        assert run.completions(10, [{"a": 1}], name="eval") == "completions/step-000010-eval.parquet"
        run.completions(10, [{"row_id": 2, "score": 0.5}, {"row_id": 3, "score": None}])
        run.completions(11, [])
    folder = tmp_path / "completions"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-000010-eval.parquet",
        "step-000010.parquet",
        "step-000011.parquet",
    ]
    rows = parquet.read_table(folder / "step-000010.parquet").to_pylist()
    assert rows == [{"row_id": 2, "score": 0.5}, {"row_id": 3, "score": None}]
