"""The first rows of a file, with everything that is wrong with the file; imports no torch, and caches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from pyarrow import parquet

from burnish.data.errors import DataError, excerpt
from burnish.data.sources import FILE_KINDS, RECIPE, UNREADABLE, numbered_rows
from burnish.data.table import Table

NUM_PEEKED = 1000
MAX_COUNTED_BYTES = 256 << 20

Numbered = list[tuple[int, Mapping[str, Any]]]


@dataclass(frozen=True)
class Peek:
    """What the beginning of a source says.

    Attributes:
        rows: the first rows as one table, or None if there is none.
        indices: the number of each of them in the source.
        num_rows: rows of the whole source; None if they were not counted.
        faults: what is wrong with the file, and with rows that are in no table.
    """

    rows: Dataset | None
    indices: tuple[int, ...]
    num_rows: int | None
    faults: tuple[str, ...]


def local_file(source: str) -> Path | None:
    """The file that a source is read from; None for a data set of the hub."""
    if source.startswith(RECIPE):
        return Path(str(resources.files("burnish.recipes") / "data" / f"{source.removeprefix(RECIPE)}.jsonl"))
    path = Path(source).expanduser()
    return path if Path(path.name.removesuffix(".gz")).suffix in FILE_KINDS else None


def peek(path: Path, *, limit: int = NUM_PEEKED) -> Peek:
    """The first rows of a file of any kind that `load_rows` reads."""
    try:
        found = _peek_parquet(path, limit) if path.suffix == ".parquet" else _peek_text(path, limit)
    except UNREADABLE as error:
        return Peek(None, (), None, (f"{str(path)!r} cannot be read: {_first_line(error)}",))
    if found.rows is None and not found.faults:
        return Peek(None, (), 0, (f"{str(path)!r} has no rows; give at least one.",))
    return found


def _peek_text(path: Path, limit: int) -> Peek:
    faults: list[str] = []
    numbered: Numbered = []
    stream = numbered_rows(path, lambda error: faults.append(str(error)))
    for index, row in islice(stream, limit):
        if isinstance(row, Mapping):
            numbered.append((index, row))
        else:
            faults.append(f"{path}, row {index}: a row is a dict (JSON object), found {excerpt(row)}.")
    num_rows = len(numbered) + len(faults) if next(stream, None) is None else _count_rows(path)
    table, fitting = _fit(numbered, faults, place=str(path))
    return Peek(
        rows=table.data_set(fitting) if fitting and table.schema.names else None,
        indices=tuple(index for index, _ in fitting),
        num_rows=num_rows,
        faults=tuple(faults),
    )


def _fit(numbered: Numbered, faults: list[str], *, place: str) -> tuple[Table, Numbered]:
    """The columns, and the rows that they can hold; the others are faults."""
    try:
        return Table.of(iter(numbered), place=place), numbered
    except DataError:  # some row, or several
        table, fitting = Table(), Numbered()
    for index, row in numbered:
        try:
            table = table.with_row(row, f"{place}, row {index}")
            fitting.append((index, row))
        except DataError as error:
            faults.append(str(error).replace("\n", " "))
    return table, fitting


def _count_rows(path: Path) -> int | None:
    """Lines of a plain file of JSON lines that are not blank, unless it is long."""
    if path.suffix != ".jsonl" or path.stat().st_size > MAX_COUNTED_BYTES:
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if not line.isspace())


def _peek_parquet(path: Path, limit: int) -> Peek:
    with parquet.ParquetFile(path) as file:
        num_rows = file.metadata.num_rows
        batches: Iterator[Any] = file.iter_batches(batch_size=limit)
        table = pa.Table.from_batches(list(islice(batches, 1)), schema=file.schema_arrow)[:limit]
    rows = Dataset(table) if len(table) else None
    return Peek(rows, tuple(range(len(table))), num_rows, ())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
