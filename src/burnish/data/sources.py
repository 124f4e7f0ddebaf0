"""Where rows come from: a data set, a list, a file, a recipe or the hub -> `datasets.Dataset`.

Local JSON, JSON lines and CSV are read here, row by row, so that rows may have different keys and an error
names file, row and column. The rows go into the cache of `datasets`, under the file's path, size and time of
change, and the code that reads it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, TextIO, TypeVar

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.exceptions import DatasetsError
from pyarrow import parquet

from burnish.data.answers import LABEL_COLUMN
from burnish.data.errors import DataError, excerpt
from burnish.data.images import encode_rows
from burnish.data.numbers import NUMBER_COLUMNS, TIE_COLUMN
from burnish.data.table import Table, check_row

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")
RECIPE = "recipe:"
CSV_CHUNK_ROWS = 1000
UNREADABLE = (OSError, EOFError, ValueError, pa.ArrowException)
TRUTHS = {"true": True, "false": False}

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
        with _naming(path):
            parquet.read_schema(path)
        return Dataset.from_parquet(str(path))  # pyright: ignore[reportReturnType]
    return _load_file(path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What a reader says of a file that is none of its kind, as an error that names the file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        yield
    except DataError:
        raise
    except UNREADABLE as error:
        reason = str(error).strip() or type(error).__name__
        raise DataError(
            f"{str(path)!r} cannot be read: {excerpt(reason, length=200)}\n"
            "A file of rows is UTF-8 text: JSON lines, JSON or CSV with commas, also as .gz; or it is Parquet."
        ) from error


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
        options: dict[str, Any] = {"streaming": True} if streaming else {}
        return datasets.load_dataset(repository, revision=revision or None, **options)
    except (OSError, ValueError, DatasetsError) as error:
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
    return Table.of(enumerate(rows), place="the list of rows").data_set(enumerate(rows))


def _load_file(path: Path) -> Dataset:
    with _naming(path):
        table = Table.of(numbered_rows(path), place=str(path))
    if not table.schema.names:
        raise DataError(f"{str(path)!r} has no rows; give at least one.")
    stamp = path.stat()
    loaded = Dataset.from_generator(
        _generate,
        features=table.features,
        gen_kwargs={
            "path": str(path.absolute()),
            "size": stamp.st_size,
            "changed": stamp.st_mtime_ns,
            "code": code_hash(),
        },
    )
    assert isinstance(loaded, Dataset)
    return loaded


def code_hash() -> str:
    """Hash of this folder's code: the cache of `datasets` does not look into functions of a package."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _generate(path: str, size: int, changed: int, code: str) -> Iterator[dict[str, Any]]:
    """Rows with every key of the file; what is not read of the arguments is there to be part of the cache's key."""
    del size, changed, code
    table = Table.of(numbered_rows(Path(path)), place=path)
    for part in table.filled(numbered_rows(Path(path))):
        yield from part.to_pylist()


def _checked_rows(path: str) -> Iterator[dict[str, Any]]:
    with _naming(Path(path)):
        for index, row in numbered_rows(Path(path)):
            check_row(row, f"{path}, row {index}")
            yield row


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
    """Text, except for the columns of numbers and truths: an answer may be "42" or "None"; an empty cell is missing."""
    import pandas as pd

    numbers = {spelling for spellings in NUMBER_COLUMNS.values() for spelling in spellings}
    numbers |= {"row_id", TIE_COLUMN, LABEL_COLUMN}
    chunks = pd.read_csv(path, dtype=str, keep_default_na=False, chunksize=CSV_CHUNK_ROWS)
    for chunk in chunks:
        for row in chunk.to_dict("records"):
            yield {str(key): _number(value) if key in numbers else value or None for key, value in row.items()}


def _number(text: str) -> Any:
    """The number, true or false that a cell says; None of an empty one, and the text of one that says none of them."""
    if not text:
        return None
    if (truth := TRUTHS.get(text.strip().lower())) is not None:
        return truth
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
