"""What is wrong with a data set: one row's problem, and the error that names the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NUM_NAMED_ROWS = 8


class DataError(ValueError):
    """A data set that cannot be trained on; the message says where and how to fix it."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be trained on.

    Attributes:
        row: its index in the given data set.
        column: the column at fault.
        problem: what is wrong with it.
        value: the value found, shortened.
        fix: what to do about it.
    """

    row: int
    column: str
    problem: str
    value: str
    fix: str

    def __str__(self) -> str:
        return f"row {self.row}, column {self.column!r}: {self.problem}; found {self.value}. {self.fix}"


class BadRowsError(DataError):
    """Rows that cannot be trained on, all of them in `bad_rows`; the message names the first."""

    def __init__(self, message: str, bad_rows: Sequence[BadRow]) -> None:
        super().__init__(message)
        self.bad_rows = tuple(bad_rows)


class RowProblem(ValueError):
    """Raised by the functions that read a row, which do not know its index.

    Args:
        column: the column at fault.
        problem: what is wrong with it.
        value: the value found, whatever it is; it is shortened here.
        fix: what to do about it, a whole sentence.
    """

    def __init__(self, column: str, problem: str, *, value: object, fix: str) -> None:
        super().__init__(f"column {column!r}: {problem}")
        self.column = column
        self.problem = problem
        self.value = excerpt(value)
        self.fix = fix

    def at(self, row: int) -> BadRow:
        """The same problem with the index of its row."""
        return BadRow(row=row, column=self.column, problem=self.problem, value=self.value, fix=self.fix)


def excerpt(value: object, *, length: int = 60) -> str:
    r"""The value as Python writes it, on one line of printable ASCII, shortened in the middle.

    >>> excerpt("a\nb")
    "'a\\nb'"
    """
    shown = value if not isinstance(value, str) or len(value) <= 2 * length else value[:length] + value[-length:]
    try:
        text = ascii(shown) if isinstance(value, str) and not value.isprintable() else repr(shown)
    except RecursionError:
        text = f"<{type(value).__name__} of too many levels to show>"
    text = text.replace("\n", "\\n")
    if len(text) <= length:
        return text
    return f"{text[: length - 20]}…{text[-19:]}"


def bad_rows_error(bad_rows: Sequence[BadRow], *, name: str, num_rows: int) -> BadRowsError:
    """The error that names the first bad rows, one a line, and how many there are."""
    lines = [f"{name}: {len(bad_rows)} of {num_rows} rows cannot be trained on:"]
    lines += [f"  {bad}" for bad in bad_rows[:NUM_NAMED_ROWS]]
    if len(bad_rows) > NUM_NAMED_ROWS:
        lines.append(f"  … and {len(bad_rows) - NUM_NAMED_ROWS} more")
    lines.append("Fix these rows, or set on_bad_row='drop' to leave them out and count them in the report.")
    return BadRowsError("\n".join(lines), bad_rows)
