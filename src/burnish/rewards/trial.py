"""Rewards tried out before any compute is spent: right, empty, echoed, garbage and very long answers.

A reward that scores the empty answer as high as the right one teaches silence; one that scores nothing as right
teaches nothing. Both are seen here, on a few rows, in a second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from burnish.rewards.score import Scorer
from burnish.rewards.table import text_of
from burnish.types import Answers

RIGHT_COLUMNS = ("answer", "solution", "completion", "chosen", "target")
NUM_WORDS = 2_000
GARBAGE = "lorem 17 ipsum } dolor \\frac sit 3.5 amet None <think> ñ ## 0"
BOXED = "\\boxed{{{}}}"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialRow:
    """What one function gave to the answers of one kind.

    Attributes:
        reward: the function's name.
        kind: of the answers.
        mean: over the answers that were scored, NaN without any.
        lowest: of them.
        highest: of them.
        num_scored: answers with a score.
        num_answers: all of them.
        problem: what went wrong with the first that failed; empty if nothing did.
    """

    reward: str
    kind: str
    mean: float
    lowest: float
    highest: float
    num_scored: int
    num_answers: int
    problem: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """The table of a trial, and what it means.

    Attributes:
        rows: one for each function and kind of answer, functions first.
        verdicts: sentences about what is wrong; empty if nothing stands out.
        right_column: where the right answers came from, or None.
        num_prompts: rows of the data set that were tried.
    """

    rows: tuple[TrialRow, ...]
    verdicts: tuple[str, ...]
    right_column: str | None
    num_prompts: int


def try_rewards(
    scorer: Scorer,
    rows: Sequence[Mapping[str, Any]],
    *,
    sample: int = 20,
    seed: int = 0,
    right_column: str | None = None,
    tokenize: Callable[[str], list[int]] = lambda text: list(text.encode("utf-8", "replace")),
) -> Trial:
    """Score answers of every kind to a sample of prompts. The scorer has to have `on_error="unscored"`.

    Args:
        scorer: what is tried.
        rows: of the data set, with their `prompt` and every other column.
        sample: prompts that are tried.
        seed: of the sample.
        right_column: the column of the right answers; by default the first there is of `RIGHT_COLUMNS`.
        tokenize: makes token ids of an answer; by default its bytes, so that rewards of length see bytes.

    Raises:
        ValueError: no rows, no column `prompt`, or a scorer that raises.
    """
    if scorer.on_error != "unscored":
        raise ValueError("try_rewards needs Scorer(..., on_error='unscored'): one failure must not end the trial")
    if not rows or "prompt" not in rows[0]:
        raise ValueError(
            f"try_rewards needs rows with a column 'prompt'; found {sorted(rows[0]) if rows else 'no rows'}"
        )
    scorer.check_columns(set(rows[0]) - {"prompt"})
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(sample, len(rows))))
    right_column = right_column or next((name for name in RIGHT_COLUMNS if name in rows[0]), None)
    found: list[TrialRow] = []
    for kind, make in _kinds(right_column).items():
        answers = _answers(rows, chosen, make, tokenize)
        width = max(len(ids) for ids in answers.completion_ids)
        table, log = scorer.score(answers, num_tokens=width, frozen=True)
        problems = {event["reward"]: event["problem"] for event in reversed(log.events)}
        found += [
            _row(name, kind, table.rewards[:, column], problems.get(name, ""))
            for column, name in enumerate(table.names)
        ]
    ordered = tuple(row for name in scorer.names for row in found if row.reward == name)
    verdicts = tuple(line for name in scorer.names for line in _verdicts([r for r in ordered if r.reward == name]))
    return Trial(rows=ordered, verdicts=verdicts, right_column=right_column, num_prompts=len(chosen))


def _kinds(right_column: str | None) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """What each kind of answer is made of, from the row."""
    kinds: dict[str, Callable[[Mapping[str, Any]], str]] = {}
    if right_column is not None:
        kinds["right"] = lambda row: _text(row[right_column])
        kinds["right, boxed"] = lambda row: BOXED.format(_text(row[right_column]))
        kinds["denied"] = lambda row: f"definitely not {_text(row[right_column])}"
    kinds["empty"] = lambda row: ""
    kinds["echoed prompt"] = lambda row: _text(row["prompt"])
    kinds["garbage"] = lambda row: GARBAGE
    kinds["very long"] = lambda row: "so " * NUM_WORDS
    return kinds


def _text(value: Any) -> str:
    """A text, the last message of a conversation, or anything else as text."""
    if isinstance(value, list | tuple) and value and isinstance(value[-1], Mapping):
        return text_of([{**value[-1], "role": "assistant"}])
    return str(value)


def _answers(
    rows: Sequence[Mapping[str, Any]],
    chosen: Sequence[int],
    make: Callable[[Mapping[str, Any]], str],
    tokenize: Callable[[str], list[int]],
) -> Answers:
    texts = [make(rows[row]) for row in chosen]
    prompts = [rows[row]["prompt"] for row in chosen]
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    columns = {name: [rows[row][name] for row in chosen] for name in rows[0] if name != "prompt"}
    return Answers(
        prompts=prompts,
        completions=completions,
        completion_ids=[tokenize(text) for text in texts],
        prompt_index=range(len(chosen)),
        row_id=list(chosen),
        columns=columns,
        truncated=[False] * len(chosen),
    )


def _row(reward: str, kind: str, scores: torch.Tensor, problem: str) -> TrialRow:
    scored: list[float] = scores[~scores.isnan()].tolist()
    return TrialRow(
        reward=reward,
        kind=kind,
        mean=sum(scored) / len(scored) if scored else math.nan,
        lowest=min(scored, default=math.nan),
        highest=max(scored, default=math.nan),
        num_scored=len(scored),
        num_answers=len(scores),
        problem=problem,
    )


def _verdicts(rows: Sequence[TrialRow]) -> list[str]:
    """What is wrong with one function, in sentences."""
    name, by_kind = rows[0].reward, {row.kind: row for row in rows}
    lines = [f"{name}: fails on the {row.kind} answer: {name} {row.problem}" for row in rows if row.problem]
    unscored = [row for row in rows if not row.num_scored and not row.problem]
    if len(unscored) == len(rows):
        return [*lines, f"{name}: scores nothing at all: it returned None for every answer"]
    values = {value for row in rows if row.num_scored for value in (row.lowest, row.highest)}
    if len(values) == 1:
        return [*lines, f"{name}: gives {values.pop():g} to every answer, whatever it is: there is nothing to learn"]
    best = max((by_kind[kind].mean for kind in ("right", "right, boxed") if kind in by_kind), default=math.nan)
    for kind in ("denied", "empty", "echoed prompt", "garbage", "very long"):
        mean = by_kind[kind].mean if kind in by_kind else math.nan
        if mean >= best:
            lines.append(f"{name}: scores the {kind} answer ({mean:g}) as high as the right one ({best:g})")
    return lines
