"""Rows of several graded completions of one prompt, and which of their completions are pairs.

A row has `completions`, at least two, each a text, a message or a list of messages, and their `scores` (higher is
better) or `ranks` (1 is best). A pair is two completions of which one is graded strictly better; the better one is
its first.

The completions are read two at a time, as the chosen and rejected answer of a pair row, so that prompt, messages,
tools and images have the same forms in both kinds of rows.

Example: scores [2, 5, 2] are the pairs (1, 0) and (1, 2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from burnish.data.errors import RowProblem
from burnish.data.formats import CONVERSATION_COLUMN, ChatPreference, TextPreference, read_preference
from burnish.data.numbers import TIE_COLUMN, read_number_list, read_weight
from burnish.data.plain import is_nothing

COMPLETIONS_COLUMN = "completions"
GRADE_COLUMNS = ("scores", "ranks")
KWISE_REF_COLUMN, KWISE_TOKEN_COLUMN = "ref_completion_logps", "ref_completion_token_logps"
LABELS_COLUMN = "labels"  # of a prepared row whose answers are no pairs: each is desirable, or is not
KWISE_NUMBERS = ("weight", KWISE_REF_COLUMN, KWISE_TOKEN_COLUMN)
MIN_COMPLETIONS = 2

Pair = tuple[int, int]


def preferred_pairs(grades: Sequence[float]) -> tuple[Pair, ...]:
    """All pairs of places of which the first has the higher grade.

    >>> preferred_pairs([2, 5, 2])
    ((1, 0), (1, 2))
    """
    places = range(len(grades))
    return tuple((better, worse) for better in places for worse in places if grades[better] > grades[worse])


def num_equal(grades: Sequence[float]) -> int:
    """Pairs of equal grade, the order aside.

    >>> num_equal([2, 5, 2, 2])
    3
    """
    return len(grades) * (len(grades) - 1) // 2 - len(preferred_pairs(grades))


def grades_of(row: Mapping[str, Any]) -> list[float] | None:
    """The grades of a prepared row's completions, higher is better; None for a row of chosen and rejected."""
    if "scores" in row:
        return list(row["scores"])
    return [-rank for rank in row["ranks"]] if "ranks" in row else None


def row_pairs(row: Mapping[str, Any]) -> tuple[Pair, ...]:
    """The pairs of a prepared row, as places of its completions; a tie is one in each order, labels are none.

    >>> row_pairs({}), row_pairs({"tie": True}), row_pairs({"ranks": [2, 1]})
    (((0, 1),), ((0, 1), (1, 0)), ((1, 0),))
    """
    grades = grades_of(row)
    if grades is not None:
        return preferred_pairs(grades)
    if LABELS_COLUMN in row:
        return ()
    return ((0, 1), (1, 0)) if row.get(TIE_COLUMN) else ((0, 1),)


def read_kwise_numbers(row: Mapping[str, Any], num_completions: int) -> dict[str, Any]:
    """The grades of a row and, where it has them, its weight and the reference's log-probs.

    Raises:
        RowProblem: not one number, or list of numbers, for each completion, ranks that are no whole numbers from 1 up,
            grades that are all equal, or a weight that cannot be used.
    """
    numbers = {**_read_grades(row, num_completions), **read_weight(row)}
    if KWISE_REF_COLUMN in row:
        numbers[KWISE_REF_COLUMN] = read_number_list(KWISE_REF_COLUMN, row[KWISE_REF_COLUMN], length=num_completions)
    if KWISE_TOKEN_COLUMN in row:
        lists = row[KWISE_TOKEN_COLUMN]
        if not isinstance(lists, list | tuple) or len(lists) != num_completions:
            fix = "Give a list of numbers for each completion, or remove the column."
            problem = f"are not {num_completions} lists of numbers"
            raise RowProblem(KWISE_TOKEN_COLUMN, problem, value=lists, fix=fix)
        names = completion_names(KWISE_TOKEN_COLUMN, num_completions)
        numbers[KWISE_TOKEN_COLUMN] = list(map(read_number_list, names, lists))
    return numbers


def read_completions(row: Mapping[str, Any]) -> list[Any]:
    """The completions of a row as they were given.

    Raises:
        RowProblem: no list of at least two, no prompt, or all of them are the same.
    """
    completions = row[COMPLETIONS_COLUMN]
    if not isinstance(completions, list | tuple):
        fix = "Give a list of at least two completions, each text or messages."
        problem = f"is {type(completions).__name__}, not a list"
        raise RowProblem(COMPLETIONS_COLUMN, problem, value=completions, fix=fix)
    if len(completions) < MIN_COMPLETIONS:
        fix = "Give at least two, or remove the row: there is nothing to prefer."
        raise RowProblem(COMPLETIONS_COLUMN, f"has {len(completions)} items", value=completions, fix=fix)
    if all(is_nothing(row.get(column)) for column in ("prompt", CONVERSATION_COLUMN)):
        raise RowProblem("prompt", "is missing", value=row.get("prompt"), fix="Give it, or remove the row.")
    if len(set(first_equals(completions))) == 1:
        fix = "Remove the row: there is nothing to prefer."
        raise RowProblem(COMPLETIONS_COLUMN, "are all the same", value=completions[0], fix=fix)
    return list(completions)


def first_equals(items: Sequence[Any]) -> list[int]:
    """For each item the place of the first one that is equal to it.

    >>> first_equals(["a", "b", "a"])
    [0, 1, 0]
    """
    return [next(place for place in range(index + 1) if items[place] == item) for index, item in enumerate(items)]


def in_twos(places: Sequence[int]) -> list[Pair]:
    """Places two at a time; the last one of an odd number together with the first.

    >>> in_twos([0, 1, 3])
    [(0, 1), (3, 0)]
    """
    return [(places[at], places[at + 1] if at + 1 < len(places) else places[0]) for at in range(0, len(places), 2)]


def as_pair(row: Mapping[str, Any], first: int, second: int) -> dict[str, Any]:
    """The row with two of its completions as chosen and rejected."""
    completions = row[COMPLETIONS_COLUMN]
    others = {name: value for name, value in row.items() if name not in (COMPLETIONS_COLUMN, *GRADE_COLUMNS)}
    return {**others, "chosen": completions[first], "rejected": completions[second]}


def first_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its first two different completions as chosen and rejected.

    Raises:
        RowProblem: see `read_completions`.
    """
    first, second, *_ = sorted(set(first_equals(read_completions(row))))
    return as_pair(row, first, second)


def read_twos(
    row: Mapping[str, Any], places: Sequence[int]
) -> Iterator[tuple[Pair, dict[str, Any], TextPreference | ChatPreference]]:
    """The completions at these places, two at a time: their places, the pair row, and it in canonical form.

    Raises:
        RowProblem: a pair that cannot be trained on, or one that leaves another prompt than the first.
    """
    prompts: list[Any] = []
    for first, second in in_twos(places):
        pair = as_pair(row, first, second)
        with naming_completions(first, second):
            preference = read_preference(pair)
            prompts.append(preference.prompt)
            if prompts[0] != prompts[-1]:
                fix = "Give the prompt as messages in its own column, and completions without it."
                problem = f"leaves another prompt than {COMPLETIONS_COLUMN}[0]"
                raise RowProblem("chosen", problem, value=prompts[-1], fix=fix)
        yield (first, second), pair, preference


@contextmanager
def naming_completions(first: int, second: int) -> Iterator[None]:
    """Problems of chosen and rejected become those of two completions.

    Raises:
        RowProblem: what is raised inside, under the names of the completions.
    """
    try:
        yield
    except RowProblem as problem:
        renamed = RowProblem(
            _rename(problem.column, first, second),
            _rename(problem.problem, first, second),
            value=None,
            fix=_rename(problem.fix, first, second),
        )
        renamed.value = problem.value
        raise renamed from problem


def completion_names(column: str, num_completions: int) -> tuple[str, ...]:
    """What errors call the completions of a row.

    >>> completion_names("completions", 2)
    ('completions[0]', 'completions[1]')
    """
    return tuple(f"{column}[{place}]" for place in range(num_completions))


def _read_grades(row: Mapping[str, Any], num_completions: int) -> dict[str, list[Any]]:
    column = next((name for name in GRADE_COLUMNS if name in row), GRADE_COLUMNS[0])
    grades: list[Any] = read_number_list(column, row.get(column), length=num_completions)
    if column == "ranks":
        grades = [_whole(column, grade, f"item {index} ") for index, grade in enumerate(grades)]
    if len(set(grades)) == 1:
        fix = "Remove the row: there is nothing to prefer."
        raise RowProblem(column, f"are all {grades[0]:g}", value=grades, fix=fix)
    return {column: grades}


def _rename(text: str, first: int, second: int) -> str:
    def name(match: re.Match[str]) -> str:
        column = "completion_input_ids" if match[2] else COMPLETIONS_COLUMN
        return f"{column}[{first if match[1] == 'chosen' else second}]"

    return re.sub(r"\b(chosen|rejected)(_input_ids)?\b", name, text)


def _whole(column: str, number: float, where: str) -> int:
    rank = int(number)
    if rank != number or rank < 1:
        fix = "A rank is a whole number from 1 up, and 1 is best; give other grades as scores."
        raise RowProblem(column, f"{where}is no rank", value=number, fix=fix)
    return rank
