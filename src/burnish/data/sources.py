"""Where rows come from: a data set, a list, a file, a recipe or the hub -> `datasets.Dataset`.

Local JSON, JSON lines and CSV are read here, row by row, so that rows may have different keys and an error
names file, row and column. The rows go into the cache of `datasets`, under the file's path, size and time of
change.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, IterableDataset

from burnish.data.errors import DataError, excerpt
from burnish.data.images import encode_rows
from burnish.data.numbers import NUMBER_COLUMNS, TIE_COLUMN

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")
RECIPE = "recipe:"
CHUNK_ROWS = 1000
ARROW_ERRORS = (pa.ArrowException, UnicodeError, OverflowError)

Kind = TypeVar("Kind")
Rows = Iterable[Mapping[str, Any]]
Source = Dataset | DatasetDict | Sequence[Mapping[str, Any]] | str | Path


def load_rows(source: Source, *, split: str = "train") -> Dataset:
    """The rows of a source.

    Args:
        source: a `Dataset`, returned as it is; a `DatasetDict`; a list of dicts; a path ending in .jsonl,
            .json, .csv (each also with .gz) or .parquet; `recipe:NAME`, a data set of this package; else the
            name of a data set on the hub, with `@REVISION` at will.
        split: which split, if the source has several.

    Raises:
        DataError: nothing there, no rows, no such split, or rows that do not fit into one table; the message
            names the place.
        TypeError: another kind of source.
        ValueError: a stream.
    """
    if isinstance(source, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise ValueError(
            "a stream (IterableDataset) is accepted as train_dataset alone, not as one of several sources and not for "
            "evaluation: load the rows, as with Dataset.from_list(list(stream.take(1000)))"
        )
    if isinstance(source, str | Path):
        loaded, name = _load_named(str(source)), repr(str(source))
    elif isinstance(source, Dataset | DatasetDict):
        loaded, name = source, "the data set"
    elif isinstance(source, list | tuple):
        loaded, name = _from_list(source), "the list of rows"
    else:
        raise TypeError(f"a data set is a Dataset, a list of dicts, a path or a name, not {type(source).__name__}")
    dataset = pick_split(loaded, split, name) if isinstance(loaded, DatasetDict) else loaded
    if len(dataset) == 0:
        raise DataError(f"{name} has no rows; give at least one.")
    return dataset


def load_stream(name: str | Path) -> IterableDataset:
    """The rows of a file, a recipe or a data set on the hub, as `load_rows` takes them, read when they are needed.

    Raises:
        DataError: there is no such file, recipe or split; while it is read, a row that is no JSON object.
    """
    path = Path(name).expanduser()
    kind = Path(path.name.removesuffix(".gz")).suffix
    if str(name).startswith(RECIPE):
        return load_rows(name).to_iterable_dataset()
    if kind not in FILE_KINDS:
        return pick_split(_load_from_hub(str(name), streaming=True), "train", repr(str(name)))
    if not path.is_file():
        raise DataError(f"there is no file {str(name)!r} (looked for {path.absolute()}).")
    if kind == ".parquet":
        return IterableDataset.from_parquet(str(path))
    return IterableDataset.from_generator(_checked_rows, gen_kwargs={"path": str(path.absolute())})


def split_rows(dataset: Dataset, eval_rows: int, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out `eval_rows` rows, drawn by `seed`; the same rows on every machine.

    Raises:
        DataError: there are not enough rows to leave one for training.
    """
    if not 0 < eval_rows < len(dataset):
        raise DataError(f"eval_rows={eval_rows} is not allowed: 1 to {len(dataset) - 1}, of {len(dataset)} rows.")
    parts = dataset.train_test_split(test_size=eval_rows, seed=seed, shuffle=True)
    return parts["train"], parts["test"]


def _load_named(name: str) -> Dataset | DatasetDict:
    if name.startswith(RECIPE):
        return _load_recipe(name.removeprefix(RECIPE))
    path = Path(name).expanduser()
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in FILE_KINDS:
        return _load_from_hub(name)
    if not path.is_file():
        raise DataError(f"there is no file {name!r} (looked for {path.absolute()}).")
    if kind == ".parquet":
        return Dataset.from_parquet(str(path))  # pyright: ignore[reportReturnType]
    return _load_file(path)


def _load_recipe(name: str) -> Dataset:
    folder = resources.files("burnish.recipes") / "data"
    known = sorted(item.name.removesuffix(".jsonl") for item in folder.iterdir() if item.name.endswith(".jsonl"))
    if name not in known:
        raise DataError(f"there is no recipe data set {name!r}; known: {', '.join(known) or 'none'}.")
    with resources.as_file(folder / f"{name}.jsonl") as path:
        return _load_file(path)


def _load_from_hub(name: str, *, streaming: bool = False) -> Any:
    repository, _, revision = name.partition("@")
    try:
        options = {"streaming": True} if streaming else {}
        return datasets.load_dataset(repository, revision=revision or None, **options)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot load {name!r} from the hub: {excerpt(str(error), length=200)}\n"
            f"A file must end in one of {', '.join(FILE_KINDS)}; a data set of this package is 'recipe:NAME'."
        ) from error


def pick_split(splits: Mapping[Any, Kind], split: str, name: str) -> Kind:
    """One of the splits of a data set or a stream.

    Raises:
        DataError: there is none of this name.
    """
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has: {', '.join(map(str, splits))}.")
    return splits[split]


def _from_list(rows: Sequence[Any]) -> Dataset:
    if not rows:
        raise DataError("the list of rows is empty; give at least one.")
    rows = encode_rows(rows)
    schema = table_schema(enumerate(rows), place="the list of rows")
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    return Dataset.from_dict(
        {column: table.column(column) for column in schema.names}, features=Features.from_arrow_schema(schema)
    )


def _load_file(path: Path) -> Dataset:
    schema = table_schema(numbered_rows(path), place=str(path))
    if not schema.names:
        raise DataError(f"{str(path)!r} has no rows; give at least one.")
    stamp = path.stat()
    loaded = Dataset.from_generator(
        _generate,
        features=Features.from_arrow_schema(schema),
        gen_kwargs={"path": str(path.absolute()), "size": stamp.st_size, "changed": stamp.st_mtime_ns},
    )
    assert isinstance(loaded, Dataset)
    return loaded


def _generate(path: str, size: int, changed: int) -> Iterator[dict[str, Any]]:
    """Rows with every key of the file; size and time of change are there to be part of the cache's key."""
    schema = table_schema(numbered_rows(Path(path)), place=path)
    for chunk in _chunks(numbered_rows(Path(path))):
        yield from pa.Table.from_pylist([dict(row) for _, row in chunk], schema=schema).to_pylist()


def _checked_rows(path: str) -> Iterator[dict[str, Any]]:
    for index, row in numbered_rows(Path(path)):
        _check_row(row, f"{path}, row {index}")
        yield row


def _check_row(row: Any, where: str) -> None:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row is a dict (JSON object), found {excerpt(row)}.")


def numbered_rows(path: Path, on_fault: Callable[[DataError], None] | None = None) -> Iterator[tuple[int, Any]]:
    """Rows of a file, numbered from 0, blank lines left out.

    Args:
        path: a file of JSON, JSON lines or CSV.
        on_fault: is told of each line that is no JSON, which is left out.

    Raises:
        DataError: a line is no JSON, and there is no `on_fault`.
    """
    if path.name.removesuffix(".gz").endswith(".csv"):
        yield from enumerate(_csv_rows(path))
        return
    with _open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
        is_array = first.lstrip().startswith("[")
        file.seek(0)
        if is_array:
            yield from enumerate(_parse(file.read(), path, "as a whole"))
            return
        numbered = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for row, (number, line) in enumerate(numbered):
            try:
                parsed = _parse(line, path, f"line {number} (row {row})")
            except DataError as error:
                if on_fault is None:
                    raise
                on_fault(error)
            else:
                yield row, parsed


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Text, except for the columns of numbers: an answer may be "42" or "None"; an empty cell is missing."""
    import pandas as pd

    numbers = {spelling for spellings in NUMBER_COLUMNS.values() for spelling in spellings} | {"row_id", TIE_COLUMN}
    chunks = pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=CHUNK_ROWS)
    for chunk in chunks:
        for row in chunk.to_dict("records"):
            yield {str(key): _number(value) if key in numbers else value or None for key, value in row.items()}


def _number(text: str) -> Any:
    """The number that a cell says; None of an empty one, and the text of one that says none."""
    if not text:
        return None
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _parse(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fix = "A .jsonl file holds one JSON object a line; a .json file may hold a list of them."
        raise DataError(f"{str(path)!r}, {where}, is no JSON: {error}. Found {excerpt(text)}. {fix}") from error


def _chunks(rows: Iterable[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk


def table_schema(rows: Iterable[tuple[int, Any]], *, place: str) -> pa.Schema:
    """The types of all columns over all rows.

    Raises:
        DataError: a row is no dict, or a value does not fit the type that its column has so far.
    """
    schema = pa.schema([])
    for chunk in _chunks(rows):
        for index, row in chunk:
            _check_row(row, f"{place}, row {index}")
        try:
            schema = _widen(schema, [row for _, row in chunk])
        except ARROW_ERRORS:
            for index, row in chunk:
                schema = widen_by_row(schema, row, f"{place}, row {index}")
    return schema


def _widen(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.Schema:
    columns = dict.fromkeys(str(column) for row in rows for column in row)
    fields = [pa.field(column, pa.array([row.get(column) for row in rows]).type) for column in columns]
    return pa.unify_schemas([schema, pa.schema(fields)], promote_options="permissive")


def widen_by_row(schema: pa.Schema, row: Mapping[str, Any], where: str) -> pa.Schema:
    """The types of all columns with those of one more row.

    Raises:
        DataError: a value does not fit the type that its column has so far.
    """
    for column, value in row.items():
        try:
            schema = _widen(schema, [{column: value}])
        except ARROW_ERRORS as error:
            known = f"; the rows before have {schema.field(column).type}" if column in schema.names else ""
            raise DataError(
                f"{where}, column {column!r}: {excerpt(value)} does not fit into one table: {error}{known}.\n"
                "Give the column one type in every row, and text that is valid Unicode."
            ) from error
    return schema
