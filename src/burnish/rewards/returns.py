"""What a reward function returned -> a score for each answer, or the reason why it is none.

An answer's entry is a number (int, float, bool, numpy or torch scalar), None for "not scored", a list with a number
for each turn, or a list of spans (start, end, reward) of its tokens. This file runs in workers too: no torch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

LARGEST = 3.4e38  # of float32, in which rewards are kept
NOWHERE = -1


class ResultError(TypeError):
    """The whole result has a form that cannot be read."""


@dataclass(frozen=True)
class AnswerShape:
    """What a result is checked against.

    Attributes:
        num_tokens: tokens of the answer.
        turn_ends: the last token of each turn, `NOWHERE` for a turn without tokens.
    """

    num_tokens: int
    turn_ends: tuple[int, ...]

    @classmethod
    def of(cls, num_tokens: int, turns: Sequence[int] | None) -> AnswerShape:
        """Of an answer whose tokens belong to these turns; None: to one.

        >>> AnswerShape.of(4, [0, 0, 1, 1]).turn_ends
        (1, 3)
        """
        if not turns:
            return cls(num_tokens, (num_tokens - 1 if num_tokens else NOWHERE,))
        ends = [NOWHERE] * (max(turns) + 1)
        for position, turn in enumerate(turns):
            ends[turn] = position
        return cls(num_tokens, tuple(ends))


@dataclass(frozen=True)
class Score:
    """The score of one answer.

    Attributes:
        value: the reward, NaN if the answer is not scored.
        tokens: (position, reward) of the tokens that rewards of turns or spans belong to.
        problem: what is wrong with the entry; None if nothing is.
    """

    value: float
    tokens: tuple[tuple[int, float], ...] = ()
    problem: str | None = None


def read_result(result: Any, shapes: Sequence[AnswerShape]) -> list[Score]:
    """A score for each answer.

    Raises:
        ResultError: no list, array or tensor with one entry for each answer; the message begins with "returned".
    """
    example = f"Return a list of {len(shapes)} numbers or None, one for each answer"
    if result is None:
        raise ResultError(f"returned None: is there a `return`? {example}.")
    if _is_array(result):
        if result.ndim != 1:
            raise ResultError(
                f"returned an array of shape {tuple(result.shape)}. {example}, or an array of that shape."
            )
        result = result.tolist()
    if not isinstance(result, list | tuple):
        raise ResultError(f"returned {_shown(result)}, of type {type(result).__name__}. {example}.")
    if len(result) != len(shapes):
        raise ResultError(f"returned {len(result)} entries for {len(shapes)} answers. {example}.")
    return [_score(entry, shape) for entry, shape in zip(result, shapes, strict=True)]


def _score(entry: Any, shape: AnswerShape) -> Score:
    try:
        if entry is None:
            return Score(math.nan)
        if _is_array(entry) and entry.ndim == 1:
            entry = entry.tolist()
        if isinstance(entry, list | tuple):
            return (
                _of_spans(entry, shape) if any(isinstance(e, list | tuple) for e in entry) else _of_turns(entry, shape)
            )
        return Score(_number(entry))
    except ValueError as problem:
        return Score(math.nan, problem=str(problem))


def _of_turns(entry: Sequence[object], shape: AnswerShape) -> Score:
    """Rewards of turns: each belongs to the turn's last token; None is a turn that is not scored."""
    if len(entry) != len(shape.turn_ends):
        turns = f"{len(shape.turn_ends)} turn{'s' * (len(shape.turn_ends) != 1)}"
        raise ValueError(f"returned {len(entry)} numbers for an answer of {turns}: {_shown(entry)}")
    scored = [(end, _number(value)) for end, value in zip(shape.turn_ends, entry, strict=True) if value is not None]
    return Score(_number(sum(v for _, v in scored)), _placed(scored)) if scored else Score(math.nan)


def _of_spans(entry: Sequence[Any], shape: AnswerShape) -> Score:
    """Rewards of spans [start, end): each belongs to the span's last token."""
    scored: list[tuple[int, float]] = []
    for span in entry:
        if not isinstance(span, list | tuple) or len(span) != 3:
            raise ValueError(f"returned {_shown(span)} among spans; a span is (start, end, reward)")
        start, end = (_scalar(edge) for edge in span[:2])
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= shape.num_tokens:
            place = f"tokens [start, end) with 0 <= start < end <= {shape.num_tokens}"
            raise ValueError(f"returned the span {_shown(span)}; it has to be {place}, the answer's length")
        scored.append((end - 1, _number(span[2])))
    return Score(_number(sum(v for _, v in scored)), _placed(scored))


def _placed(scored: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    return tuple((position, value) for position, value in scored if position != NOWHERE)


def _number(value: object) -> float:
    """A finite number.

    Raises:
        ValueError: it is none; the message begins with "returned".
    """
    scalar = _scalar(value)
    if not isinstance(scalar, Real):
        hint = f"; return float({scalar!r})" if isinstance(scalar, str) and len(scalar) < 20 else ""
        raise ValueError(f"returned {_shown(value)}, of type {type(value).__name__}, which is no number{hint}")
    number = float(scalar)
    if not abs(number) <= LARGEST:
        hint = "; return None for an answer that is not scored" if math.isnan(number) else ""
        raise ValueError(f"returned {number}, which is not finite in float32{hint}")
    return number


def _scalar(value: Any) -> Any:
    """The Python number of a numpy or torch scalar, everything else as it is."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    return value.item() if _is_array(value) and value.ndim == 0 else value


def _is_array(value: Any) -> Any:
    """A numpy array or a tensor of torch; neither is imported for this."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    return (numpy is not None and isinstance(value, numpy.ndarray)) or (
        torch is not None and isinstance(value, torch.Tensor)
    )


def _shown(value: object) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:40]}…{text[-19:]}"
