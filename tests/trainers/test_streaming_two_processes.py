"""A stream on two processes (gloo, DDP): every row once, and both ranks at the end of the stream together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from burnish.runtime.rundir import read_events
from ranks import launch

HERE = Path(__file__).parent


def start(output: Path, processes: int, **options):
    output.mkdir(exist_ok=True)
    return launch(processes, HERE / "stream_two_processes.py", output, json.dumps(options))


def run(output: Path, processes: int, **options):
    done = start(output, processes, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    again = "-again" if "resume" in options else ""
    return [json.loads((output / f"seen-{rank}{again}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """23 rows as 4 a step: the last step has three, so that one rank has one of them, or a filler."""
    run(tmp_path / "one", 1, num_rows=23, max_steps=9)
    ranks = run(
        tmp_path / "two", 2, num_rows=23, max_steps=9, per_device_train_batch_size=1, gradient_accumulation_steps=2
    )
    assert [sorted(a + b) for a, b in zip(ranks[0][0], ranks[1][0], strict=True)][-1] == [20, 21, 22]
    gradients = [torch.load(tmp_path / name / "gradients-0.pt", weights_only=True) for name in ("one", "two")]
    assert len(gradients[0]) == len(gradients[1]) == 6
    for one, two in zip(*gradients, strict=True):
        assert float((one - two).norm() / one.norm()) < 1e-11


@pytest.mark.slow
def test_bad_rows_that_all_fall_to_one_rank(tmp_path):
    """Rank 1 drops 7 of its 14 rows and is through long before rank 0: it goes on with fillers, and nothing hangs."""
    bad = [7, 9, 11, 13, 15, 17, 19]
    settings = {"per_device_train_batch_size": 2, "max_steps": 40, "save_strategy": "steps", "save_steps": 3}
    ranks = run(tmp_path / "run", 2, num_rows=28, bad=bad, **settings)
    assert len(ranks[0][0]) == len(ranks[1][0]) == 7
    assert sorted(row for seen, _ in ranks for step in seen for row in step) == [r for r in range(28) if r not in bad]
    assert ranks[1][0][-1] == []
    events = read_events(tmp_path / "run" / "run" / "events.jsonl")
    (total,) = [event for event in events if event["kind"] == "stream"]
    assert total["dropped_rows"] == bad
    assert (total["counts"]["num_read"], total["counts"]["num_dropped"]) == (28, 7)
    again = run(tmp_path / "run", 2, num_rows=28, bad=bad, resume="checkpoint-3", **settings)
    assert [seen for seen, _ in again] == [seen[3:] for seen, _ in ranks]
    assert [total for _, total in again] == [total for _, total in ranks]


@pytest.mark.slow
def test_ranks_that_read_different_streams_are_refused(tmp_path):
    done = start(tmp_path / "run", 2, num_rows=20, max_steps=2, apart=True)
    assert done.returncode != 0
    assert "the processes read different streams" in done.stderr
