"""From calls to scores: retries, and the search for the answers that a function fails on.

A call that fails is tried again `retries` times. After that the batch is halved, down to single answers, so that one
bad answer costs no other its score. A half has its share of the time, so that every level of halving takes no longer
than the first call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.rewards.calls import RESULT, SPLIT, TIMEOUT, Reply
from burnish.rewards.returns import Score

Call = Callable[[Sequence[int], float | None], Reply]
SHORTEST = 1.0  # seconds that a part of a batch has at least
PAUSE = 0.5  # seconds before the first retry, doubled for each further one


@dataclass(frozen=True)
class Failure:
    """What a function did wrong with some of the answers.

    Attributes:
        rows: the answers.
        kind: as in `Reply`; `result` for what it returned.
        problem: what happened, as the rest of a sentence that begins with the function's name.
        details: a traceback or last words.
        error: the exception, if it was raised in this process.
    """

    rows: tuple[int, ...]
    kind: str
    problem: str
    details: str = ""
    error: BaseException | None = None


@dataclass
class Outcome:
    """All that came of one function and a round's answers."""

    scores: dict[int, Score] = field(default_factory=dict[int, Score])
    failures: list[Failure] = field(default_factory=list[Failure])
    recovered: list[Failure] = field(default_factory=list[Failure])
    overdue: list[Failure] = field(default_factory=list[Failure])
    columns: dict[str, dict[int, Any]] = field(default_factory=dict[str, dict[int, Any]])
    metrics: dict[str, list[tuple[float, int]]] = field(default_factory=dict[str, list[tuple[float, int]]])
    num_retries: int = 0
    seconds: float = 0.0

    def add(self, rows: Sequence[int], reply: Reply) -> None:
        """Take over what a call that succeeded gave back. Entries of it may still be wrong."""
        for row, score in zip(rows, reply.scores, strict=True):
            self.scores[row] = score
            if score.problem is not None:
                self.failures.append(Failure((row,), RESULT, score.problem))
        for column, values in reply.columns.items():
            self.columns.setdefault(column, {}).update(zip(rows, values, strict=True))
        for name, value in reply.metrics.items():
            self.metrics.setdefault(name, []).append((value, len(rows)))

    def fail(self, rows: Sequence[int], failure: Failure) -> None:
        """These answers have no score."""
        self.failures.append(failure)
        self.scores.update((row, Score(math.nan, problem=failure.problem)) for row in rows)


@dataclass(frozen=True)
class Attempts:
    """How a function's answers are scored.

    Attributes:
        call: calls the function with some of the answers under a limit of seconds.
        per_answer: each answer has a call of its own.
        seconds: limit of a call, or None.
        overdue: what an answer gets whose call takes longer; None: it is a failure.
        retries: how often a call is tried again.
        stop_early: nothing is scored after the first failure.
    """

    call: Call
    per_answer: bool
    seconds: float | None
    overdue: float | None
    retries: int
    stop_early: bool

    def score(self, rows: Sequence[int]) -> Outcome:
        """Score them all; without rows, as on a process that has none of the last prompts, nothing is called."""
        outcome, start = Outcome(), time.perf_counter()
        for part in [[row] for row in rows] if self.per_answer or not rows else [rows]:
            self._score_part(part, self.seconds, self.retries, outcome)
            if self.stop_early and outcome.failures:
                break
        outcome.seconds = time.perf_counter() - start
        return outcome

    def _score_part(self, rows: Sequence[int], seconds: float | None, retries: int, outcome: Outcome) -> None:
        reply = self.call(rows, seconds)
        for attempt in range(retries):
            if reply.kind not in SPLIT:
                break
            time.sleep(PAUSE * 2**attempt)
            outcome.num_retries += 1
            outcome.recovered.append(_failure(rows, reply))
            reply = self.call(rows, seconds)
        if reply.kind is None:
            outcome.add(rows, reply)
        elif reply.kind == TIMEOUT and len(rows) == 1 and self.overdue is not None:
            outcome.overdue.append(_failure(rows, reply))
            outcome.scores[rows[0]] = Score(self.overdue)
        elif len(rows) == 1 or reply.kind not in SPLIT:
            outcome.fail(rows, _failure(rows, reply))
        else:
            self._halve(rows, seconds, reply, outcome)

    def _halve(self, rows: Sequence[int], seconds: float | None, reply: Reply, outcome: Outcome) -> None:
        num_failures, middle = len(outcome.failures), len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            share = None if seconds is None else max(seconds * len(half) / len(rows), min(seconds, SHORTEST))
            self._score_part(half, share, 0, outcome)
            if self.stop_early and len(outcome.failures) > num_failures:
                return
        if len(outcome.failures) == num_failures:
            outcome.recovered.append(_failure(rows, reply))


def _failure(rows: Sequence[int], reply: Reply) -> Failure:
    return Failure(tuple(rows), str(reply.kind), reply.failure, reply.details, reply.error)
