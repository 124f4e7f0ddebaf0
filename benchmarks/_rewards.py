"""How soon held-out accuracy is reached: pure functions of curves. Standard library only."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

METRICS = {"sampled": "eval_accuracy", "greedy": "eval_accuracy_greedy"}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: library and seed.
        seed: its own.
        curve: step -> {sampled, greedy: share of right held-out answers and, where known, the ends of its interval}.
        seconds: of each step, without evaluation and saving; empty where it was not measured.
    """

    name: str
    seed: int
    curve: Mapping[int, Mapping[str, Sequence[float]]]
    seconds: Sequence[float] = ()

    def minutes(self, step: int) -> float:
        """Training time up to the end of a step."""
        return sum(self.seconds[:step]) / 60


def first_step_at(run: Run, measure: str, target: float) -> int | None:
    """The first evaluated step with at least this accuracy, or None."""
    return next((step for step, found in sorted(run.curve.items()) if found[measure][0] >= target), None)


def median_steps(runs: Sequence[Run], measure: str, target: float) -> float:
    """The median over runs of the steps that they need; infinite if more than half never get there."""
    steps = [first_step_at(run, measure, target) for run in runs]
    return statistics.median(math.inf if step is None else step for step in steps)


def read_run_directory(directory: Path) -> Run:
    """A run of `burnish train recipe:grpo` with evaluations, from what it wrote.

    Raises:
        ValueError: it has no evaluations of accuracy.
    """
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = {
        line["step"]: {name: [line[metric]] for name, metric in METRICS.items()}
        for line in lines
        if all(metric in line for metric in METRICS.values())
    }
    if len(curve) < 2:
        raise ValueError(
            f"{directory.name} has {len(curve)} evaluations of accuracy; train with "
            "--set training.eval_strategy=steps --set training.eval_steps=5"
        )
    return Run(name=f"Burnish, {directory.name}", seed=-1, curve=curve)
