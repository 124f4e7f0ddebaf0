"""The numbers of a row: how good its answers are, what the reference says of them, and how much the row weighs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.errors import RowProblem

NUMBER_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "ref_chosen_logps": ("ref_chosen_logps", "reference_chosen_logps"),
    "ref_rejected_logps": ("ref_rejected_logps", "reference_rejected_logps"),
    "weight": ("weight",),
    "margin": ("margin",),
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating"),
}
SCORE_COLUMNS = ("score_chosen", "score_rejected")
REF_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
TOKEN_COLUMNS = ("ref_chosen_token_logps", "ref_rejected_token_logps")
TIE_COLUMN = "tie"
NUMBER_FIX = "Give a finite number in every row, or remove the column."

# Two columns that a row has both or neither of, and what to do if it lacks one.
TOGETHER = (
    (REF_COLUMNS, "to have the reference model score the rows"),
    (TOKEN_COLUMNS, "to have the reference model score the rows"),
    (SCORE_COLUMNS, "to train without scores"),
)


def read_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """The optional numbers of a pair row, under their canonical names; only those whose column the row has.

    Returns:
        a float for each of `NUMBER_COLUMNS`, a list of floats for each of `TOKEN_COLUMNS`, True or False for `tie`.

    Raises:
        RowProblem: null, not a number or not finite; a negative weight; a number of one answer without that of the
            other.
    """
    numbers: dict[str, Any] = {}
    for name, spellings in NUMBER_COLUMNS.items():
        column = next((spelling for spelling in spellings if spelling in row), None)
        if column is not None:
            numbers[name] = read_number(column, row[column])
    numbers |= {name: read_number_list(name, row[name]) for name in TOKEN_COLUMNS if name in row}
    for columns, purpose in TOGETHER:
        given = [name for name in columns if name in numbers]
        if len(given) == 1:
            missing = columns[1 - columns.index(given[0])]
            fix = f"Add {missing}, or remove {given[0]} {purpose}."
            raise RowProblem(missing, f"is missing although {given[0]} is given", value=None, fix=fix)
    _check_weight(numbers)
    if TIE_COLUMN in row:
        numbers[TIE_COLUMN] = _read_tie(row[TIE_COLUMN])
    return numbers


def read_weight(row: Mapping[str, Any]) -> dict[str, float]:
    """The row's `weight`, or nothing.

    Raises:
        RowProblem: null, not a number, not finite or negative.
    """
    numbers = {"weight": read_number("weight", row["weight"])} if "weight" in row else {}
    _check_weight(numbers)
    return numbers


def read_number(column: str, value: Any, *, where: str = "") -> float:
    """A finite number.

    Args:
        column: its column, for errors.
        value: what the row has there.
        where: its place in the column, for errors, with a blank at its end.

    Raises:
        RowProblem: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem(column, f"{where}is not a number", value=value, fix=NUMBER_FIX)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowProblem(column, f"{where}is not finite", value=value, fix=NUMBER_FIX)
    return number


def read_number_list(column: str, values: Any, *, length: int | None = None) -> list[float]:
    """A list of finite numbers, `length` of them if it is given.

    Raises:
        RowProblem: it is none; the item is named.
    """
    if not isinstance(values, list | tuple):
        fix = "Give a list of finite numbers in every row, or remove the column."
        raise RowProblem(column, f"is {type(values).__name__}, not a list of numbers", value=values, fix=fix)
    if length is not None and len(values) != length:
        fix = "Give one number for each completion."
        raise RowProblem(column, f"has {len(values)} numbers for {length} completions", value=values, fix=fix)
    return [read_number(column, value, where=f"item {index} ") for index, value in enumerate(values)]


def cut_token_logps(
    names: Sequence[str],
    logps: Sequence[list[float]],
    *,
    given: Sequence[int],
    kept: Sequence[int],
    is_tokenized: bool,
) -> list[list[float]]:
    """The reference's log-probs of the answer tokens that are left.

    Args:
        names: what errors call the log-probs of each answer.
        logps: of each answer, one for each token.
        given: tokens of each answer before truncation.
        kept: tokens of each answer after it.
        is_tokenized: the row came as token ids: its log-probs are those of the given tokens, and are cut as they are.
            Else they are those of the tokens that are kept.

    Raises:
        RowProblem: not one log-prob for each token.
    """
    for name, values, before, after in zip(names, logps, given, kept, strict=True):
        expected, state = (before, "") if is_tokenized else (after, f" ({before} before truncation)")
        if len(values) != expected:
            fix = "Give one for each token of the answer, in the tokens of this model, or remove the column."
            problem = f"has {len(values)} log-probs for an answer of {expected} tokens{state}"
            raise RowProblem(name, problem, value=values, fix=fix)
    return [values[:after] for values, after in zip(logps, kept, strict=True)]


def _check_weight(numbers: Mapping[str, Any]) -> None:
    if numbers.get("weight", 0.0) < 0:
        fix = "A weight is 0 or more: how much the row counts, not which answer is better."
        raise RowProblem("weight", "is negative", value=numbers["weight"], fix=fix)


def _read_tie(value: Any) -> bool:
    if isinstance(value, str) or value not in (0, 1):
        fix = "Give true (neither answer is better) or false in every row, or 1 or 0."
        raise RowProblem(TIE_COLUMN, "is not true or false", value=value, fix=fix)
    return bool(value)
