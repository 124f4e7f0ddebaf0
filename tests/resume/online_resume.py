"""What the resume tests of GRPO and PPO share: the run that is stopped, the one that is not, and what is compared."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from ppo_training import repeatable
from test_resume import StopAfter, weights_of

from burnish.runtime.rundir import read_metrics

PLAIN_FILES = {".safetensors", ".json", ".jsonl", ".yaml", ".jinja", ".lock", ".parquet"}


def metrics_in(directory: Path) -> list[dict]:
    """What is the same in every run; `epoch` counts micro-batches, and `train_loss` the steps since the resume."""
    lines = [repeatable(line) for line in read_metrics(directory / "metrics.jsonl")]
    return [{k: v for k, v in line.items() if k != "train_loss"} for line in lines if len(line) > 2]


def stop_and_resume(make_trainer: Callable[[], Any], step: int) -> Any:
    """The trainer of a run that was interrupted after this step and went on."""
    first = make_trainer()
    first.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = make_trainer()
    second.train(resume_from_checkpoint=True)
    return second


def resume_at_every_step(
    directory: Path,
    num_steps: int,
    copies: Path,
    make_trainer: Callable[[Path], Any],
    check: Callable[[Any, Path], None],
) -> None:
    """From each checkpoint of a whole run: copied, what came after it cut off, continued and checked."""
    for step in range(1, num_steps):
        copied = copies / f"from_{step}"
        later = [f"checkpoint-{other}" for other in range(step + 1, num_steps + 1)]
        shutil.copytree(directory, copied, ignore=shutil.ignore_patterns(*later, "run.lock*"))
        resumed = make_trainer(copied)
        resumed.train(resume_from_checkpoint=True)
        check(resumed, copied)
        shutil.rmtree(copied)


def assert_the_same(resumed: Any, directory: Path, whole: Any, whole_directory: Path, *stateful: str) -> None:
    """Weights, metrics, the place in the queue, and the state of what is moved from round to round."""
    for name, tensor in weights_of(resumed).items():
        assert torch.equal(tensor, weights_of(whole)[name]), name
    assert metrics_in(directory) == metrics_in(whole_directory)
    assert resumed.queue.round_index == whole.queue.round_index
    for name in ("prompt_stream", *stateful):
        mine, theirs = (trainer.stateful()[name].state_dict() for trainer in (resumed, whole))
        assert {k: str(v) for k, v in mine.items()} == {k: str(v) for k, v in theirs.items()}, name


class WholeRuns:
    """The runs that are never stopped, by case: trainer and directory, each made once."""

    def __init__(self, make_trainer: Callable[[Path, Any], Any], make_directory: Callable[[str], Path]):
        self.make_trainer, self.make_directory = make_trainer, make_directory
        self.runs: dict[Any, tuple[Any, Path]] = {}

    def __call__(self, case: Any) -> tuple[Any, Path]:
        if case not in self.runs:
            directory = self.make_directory("whole") / "run"
            trainer = self.make_trainer(directory, case)
            trainer.train()
            assert trainer.state.global_step == trainer.args.max_steps
            self.runs[case] = trainer, directory
        return self.runs[case]


def assert_no_pickle(directory: Path) -> None:
    """No file of a run is one."""
    assert {path.suffix for path in directory.rglob("*") if path.is_file()} <= PLAIN_FILES
