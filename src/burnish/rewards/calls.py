"""One call of a reward function, whatever it does, as a `Reply`. Runs in this process and in workers: no torch."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from burnish.rewards.returns import AnswerShape, ResultError, Score, read_result

# Kinds of failure. After those of SPLIT a smaller part of the batch may well be scored.
EXCEPTION, RESULT, TIMEOUT, CRASH, STUCK, LOAD = "exception", "result", "timeout", "crash", "stuck", "load"
SPLIT = frozenset({EXCEPTION, TIMEOUT, CRASH})


class Overdue(Exception):
    """A coroutine has not finished in time, and was cancelled."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a call.

    Attributes:
        scores: one for each answer; empty if the call failed.
        kind: the kind of failure, or None.
        failure: what happened, as the rest of a sentence that begins with the function's name.
        details: the traceback, or the last output of a worker that died.
        columns: what `log_extra` was given: a value for each answer.
        metrics: what `log_metric` was given.
        error: the exception, if it was raised in this process.
    """

    scores: tuple[Score, ...] = ()
    kind: str | None = None
    failure: str = ""
    details: str = ""
    columns: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    error: BaseException | None = None

    def to_json(self) -> str:
        """As text, for the pipe; the exception stays behind."""
        return json.dumps(asdict(replace(self, error=None)), default=str)

    @classmethod
    def from_json(cls, text: str) -> Reply:
        """What `to_json` wrote."""
        fields = json.loads(text)
        scores = tuple(Score(s["value"], tuple(map(tuple, s["tokens"])), s["problem"]) for s in fields.pop("scores"))
        return cls(scores=scores, **fields)


class Notes:
    """`log_extra` and `log_metric` of one call."""

    def __init__(self, num_answers: int) -> None:
        self.num_answers = num_answers
        self.columns: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Show a column beside the answers.

        Raises:
            ResultError: not one value for each answer.
        """
        if isinstance(values, str) or len(values) != self.num_answers:
            raise ResultError(f"calls log_extra({column!r}, ...), which takes a list of a value for each answer")
        self.columns[str(column)] = list(values)

    def log_metric(self, name: str, value: float) -> None:
        """Log a number; the mean over calls is shown."""
        self.metrics.setdefault(str(name), []).append(float(value))

    def means(self) -> dict[str, float]:
        """The mean of each metric over the calls of `log_metric`."""
        return {name: sum(values) / len(values) for name, values in self.metrics.items()}


def run_call(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    shapes: Sequence[AnswerShape],
    wants: Sequence[str],
    finish: Callable[[Any], Any],
) -> Reply:
    """Call a function and read what it returns. No `Exception` and no `SystemExit` gets out.

    Args:
        function: the reward function.
        arguments: its keyword arguments.
        shapes: of the answers.
        wants: which of `log_extra` and `log_metric` it takes.
        finish: waits for a coroutine; everything else it gives back as it is.
    """
    notes = Notes(len(shapes))
    given = {"log_extra": notes.log_extra, "log_metric": notes.log_metric}
    try:
        result = finish(function(**arguments, **{name: given[name] for name in wants}))
        scores = read_result(result, shapes)
    except ResultError as error:
        return Reply(kind=RESULT, failure=str(error))
    except Overdue as error:
        return Reply(kind=TIMEOUT, failure=str(error))
    except (Exception, SystemExit) as error:
        return Reply(kind=EXCEPTION, failure=told(error), details=traceback.format_exc(limit=-8), error=error)
    return Reply(scores=tuple(scores), columns=notes.columns, metrics=notes.means())


def told(error: BaseException) -> str:
    """The exception and the innermost place of its traceback, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    text = " ".join(str(error).split())
    hint = ""
    if "main thread" in text:
        hint = "; reward_timeout=None calls it in the main thread, without a limit of time"
    return f"raised {type(error).__name__}: {text[:200]}{place}{hint}"
