"""What is said about a round's scores: metrics, columns beside the answers, events, and the error of a failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from burnish.data.errors import excerpt
from burnish.metrics import HELD_OUT, explain
from burnish.rewards.attempts import Failure, Outcome
from burnish.rewards.table import text_of
from burnish.types import Mean

if TYPE_CHECKING:
    from burnish.types import Answers

NUM_NAMED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreLog:
    """What is logged about a round's scores.

    Attributes:
        metrics: seconds, shares of unscored and of failed answers and retries of each function, and what functions
            gave to `log_metric`.
        columns: what functions gave to `log_extra`, (N) each; None for answers whose call failed.
        events: a record of each failure, and of each failed call that was made good by a later one.
    """

    metrics: Mapping[str, Mean]
    columns: Mapping[str, Sequence[Any]]
    events: tuple[dict[str, Any], ...]


def log_of(outcomes: Mapping[str, Outcome], answers: Answers, device: torch.device | str) -> ScoreLog:
    """The log of a round, with its metrics on a device.

    Raises:
        ValueError: `log_metric` was given the name of a metric of Burnish's own.
    """
    metrics: dict[str, Mean] = {}
    columns: dict[str, list[Any]] = {}
    for name, outcome in outcomes.items():
        metrics |= _metrics(name, outcome, device)
        for column, values in outcome.columns.items():
            label = f"{name}/{column}" if column in columns else column
            columns[label] = [values.get(row) for row in range(len(answers))]
    events = [event for name, outcome in outcomes.items() for event in _events(name, outcome, answers)]
    return ScoreLog(metrics=metrics, columns=columns, events=tuple(events))


def message_of(name: str, failure: Failure, answers: Answers) -> str:
    """The error: what happened, and the first answer that it happened to."""
    first = failure.rows[0]
    row = f"row {answers.row_id[first]}"
    if len(failure.rows) > 1:
        row = f"a batch of {len(failure.rows)} answers, {_rows(failure, answers)}; the first is shown"
    return (
        f"the reward {name!r} {failure.problem}\n"
        f"  at {row}\n"
        f"  prompt: {excerpt(_said(answers.prompts[first]), length=200)}\n"
        f"  answer: {excerpt(text_of(answers.completions[first]), length=200)}\n"
        "Fix the function, or set on_reward_error='unscored': such answers get no score from it, and are counted."
    )


def _metrics(name: str, outcome: Outcome, device: torch.device | str) -> dict[str, Mean]:
    def mean(values: Any) -> Mean:
        return Mean.of(torch.tensor(values, dtype=torch.float32, device=device))

    scores, overdue = outcome.scores.values(), {row for failure in outcome.overdue for row in failure.rows}
    failed = [score.problem is not None or row in overdue for row, score in outcome.scores.items()]
    unscored = [math.isnan(score.value) and score.problem is None for score in scores]
    metrics = {
        f"reward_seconds/{name}": mean(outcome.seconds),
        f"reward_unscored/{name}": mean(unscored),
        f"reward_errors/{name}": mean(failed),
        f"reward_retries/{name}": mean(outcome.num_retries),
    }
    for metric, values in outcome.metrics.items():
        free = metric in HELD_OUT or metric == f"reward_truncated/{name}" or explain(metric) is None
        if metric in metrics or not free:
            raise ValueError(f"the reward {name!r} calls log_metric({metric!r}, ...), which Burnish logs: rename it")
        metrics[metric] = mean(sum(value * n for value, n in values) / sum(n for _, n in values))
    return metrics


def _events(name: str, outcome: Outcome, answers: Answers) -> list[dict[str, Any]]:
    """Failures of one kind and text are one event."""
    grouped: dict[tuple[str, str, str], list[Failure]] = {}
    for event, failures in {
        "reward_failed": outcome.failures,
        "reward_recovered": outcome.recovered,
        "reward_overdue": outcome.overdue,
    }.items():
        for failure in failures:
            grouped.setdefault((event, failure.kind, failure.problem), []).append(failure)
    return [
        {
            "event": event,
            "reward": name,
            "kind": kind,
            "problem": problem,
            "num_answers": sum(len(failure.rows) for failure in failures),
            "rows": sorted({answers.row_id[row] for failure in failures for row in failure.rows})[:NUM_NAMED],
            "prompt": excerpt(_said(answers.prompts[failures[0].rows[0]]), length=200),
            "answer": excerpt(text_of(answers.completions[failures[0].rows[0]]), length=200),
            "details": failures[0].details,
        }
        for (event, kind, problem), failures in grouped.items()
    ]


def _rows(failure: Failure, answers: Answers) -> str:
    rows = sorted({answers.row_id[row] for row in failure.rows})
    shown = ", ".join(map(str, rows[:NUM_NAMED]))
    return f"rows {shown}{', …' if len(rows) > NUM_NAMED else ''}"


def _said(prompt: Any) -> str:
    """The text of a prompt, or of its last message."""
    if isinstance(prompt, str):
        return prompt
    return text_of([{**prompt[-1], "role": "assistant"}]) if prompt else ""
