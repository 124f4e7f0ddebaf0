"""Rows of any keys and values -> the columns of one table.

A column gets the type that all of its values share; whole numbers widen to numbers, mappings to all of their keys. One
whose values share none, text in one row and messages in another, is kept as JSON (`datasets.Json`), so that each row is
still read for itself, and a row that is wrong is a bad row among others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json

from burnish.data.errors import DataError, excerpt

CHUNK_ROWS = 1000
ARROW_ERRORS = (pa.ArrowException, UnicodeError, OverflowError)

NumberedRows = Iterable[tuple[int, Any]]


@dataclass(frozen=True)
class Table:
    """The columns that rows fit into.

    Attributes:
        schema: names and types of the columns; those of `mixed` are text.
        mixed: the columns that are kept as JSON.
    """

    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    mixed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rows: NumberedRows, *, place: str) -> Table:
        """The columns of all rows.

        Args:
            rows: each with its number.
            place: where they come from, for errors.

        Raises:
            DataError: a row is no dict, or a value that no column can hold: text that is no valid Unicode.
        """
        table = cls()
        for chunk in _chunks(rows):
            for index, row in chunk:
                check_row(row, f"{place}, row {index}")
            try:
                table = table._with([row for _, row in chunk])
            except ARROW_ERRORS:
                for index, row in chunk:
                    table = table.with_row(row, f"{place}, row {index}")
        return table

    @property
    def features(self) -> Features:
        """The columns for `datasets`."""
        features = Features.from_arrow_schema(self.schema)
        return Features({name: Json() if name in self.mixed else feature for name, feature in features.items()})

    def filled(self, rows: NumberedRows) -> Iterator[pa.Table]:
        """The rows, in parts, with every column; JSON as its text."""
        for chunk in _chunks(rows):
            yield pa.Table.from_pylist([self._encoded(row) for _, row in chunk], schema=self.schema)

    def data_set(self, rows: NumberedRows) -> Dataset:
        """The rows in memory."""
        whole = pa.concat_tables(self.filled(rows))
        return Dataset.from_dict({name: whole.column(name) for name in self.schema.names}, features=self.features)

    def _encoded(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _as_json(value) if name in self.mixed else value for name, value in row.items()}

    def _with(self, rows: Sequence[Mapping[str, Any]]) -> Table:
        columns = dict.fromkeys(str(column) for row in rows for column in row)
        fields = [pa.field(column, self._type([row.get(column) for row in rows], column)) for column in columns]
        merged = pa.unify_schemas([self.schema, pa.schema(fields)], promote_options="permissive")
        return Table(merged, self.mixed)

    def _type(self, values: Sequence[Any], column: str) -> pa.DataType:
        return pa.array(map(_as_json, values) if column in self.mixed else values).type

    def with_row(self, row: Mapping[str, Any], where: str) -> Table:
        """The columns with those of one more row.

        Raises:
            DataError: a value that no column can hold.
        """
        table = self
        for column, value in row.items():
            try:
                table = table._with([{column: value}])
            except ARROW_ERRORS as error:
                try:
                    table = table._mixing(column)._with([{column: value}])
                except ARROW_ERRORS:
                    raise DataError(
                        f"{where}, column {column!r}: {excerpt(value)} does not fit into a table: {error}.\n"
                        "Give text that is valid Unicode, and values that JSON knows or of one type in every row."
                    ) from error
        return table

    def _mixing(self, column: str) -> Table:
        others = [self.schema.field(name) for name in self.schema.names if name != column]
        return Table(pa.schema([*others, pa.field(column, pa.string())]), self.mixed | {column})


def check_row(row: Any, where: str) -> None:
    """Refuse what is no row.

    Raises:
        DataError: it is no mapping.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row is a dict (JSON object), found {excerpt(row)}.")


def _as_json(value: Any) -> str:
    """The value as text, which `datasets` reads back; surrogates stay, so that they are refused."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(f"JSON does not know it: {error}") from error


def _chunks(rows: NumberedRows) -> Iterator[list[tuple[int, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk
