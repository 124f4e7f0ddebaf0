"""Whether the rows that a run file names can be trained on, as far as it shows in the first of them without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset

from burnish.cli.methods import method_of
from burnish.cli.sources import data_sources, reward_columns
from burnish.data.check import RowCheck, RowRules, check_preferences, check_prompts
from burnish.data.errors import NUM_NAMED_ROWS, DataError
from burnish.data.kinds import ROW_KINDS
from burnish.data.peek import Peek, local_file, peek
from burnish.data.truncate import TruncationPolicy
from burnish.models.size import ModelSize

ReadRows = Callable[..., RowCheck]


@dataclass(frozen=True)
class SourceCheck:
    """What is known of one source of rows.

    Attributes:
        key: its key in the run file.
        source: its name.
        num_rows: rows of it; None if they were not counted.
        num_checked: the first so many were looked at.
        rows: what became of them; None if they could not be looked at.
        problems: what is wrong, a sentence each.
        lines: what was found, for a person.
        unread: why the rows were not looked at; empty if they were, or are not here.
    """

    key: str
    source: str
    num_rows: int | None
    num_checked: int
    rows: RowCheck | None
    problems: tuple[str, ...]
    lines: tuple[str, ...]
    unread: str = ""

    @property
    def is_trained(self) -> bool:
        """Its rows are trained on, not held out."""
        return self.key.split(".")[:2] == ["data", "train"]

    def as_dict(self) -> dict[str, Any]:
        """In short, as plain values for JSON."""
        return {
            "key": self.key,
            "source": self.source,
            "num_rows": self.num_rows,
            "num_checked": self.num_checked,
            "not_checked_because": self.unread or None,
            "forms": {} if self.rows is None else dict(self.rows.forms),
            "bad_rows": [] if self.rows is None else [vars(bad) for bad in self.rows.bad_rows],
        }


def check_sources(
    document: Mapping[str, Any],
    broken: frozenset[str],
    *,
    truncation: TruncationPolicy,
    drops: bool,
    size: ModelSize | None,
) -> list[SourceCheck]:
    """Look at every source of rows whose key is sound.

    Args:
        document: the run file.
        broken: keys that are wrong.
        truncation: the lengths that rows may have.
        drops: bad rows are left out in training.
        size: of the model, if it is on this machine.
    """
    data = document.get("data")
    method = method_of(document)
    if not isinstance(data, Mapping) or method is None:
        return []
    rules = RowRules(
        truncation=truncation,
        vocabulary=None if size is None or size.shape is None else size.shape.vocabulary,
        reads_images=None if size is None else size.reads_images,
    )
    kinds = {kind: partial(check_preferences, rules=rules, kind=kind) for kind in ROW_KINDS}
    readers: dict[str, ReadRows] = {**kinds, "prompts": partial(_check_prompts, document=document)}
    read = readers.get(method.reads)
    keys = {".".join(map(str, path)): source for path, source in data_sources(data)}
    sound = {key: source for key, source in keys.items() if key not in broken}
    return [_check_source(key, source, read, drops=drops, unread=method.unread_rows) for key, source in sound.items()]


def _check_prompts(rows: Dataset, indices: Sequence[int], *, name: str, document: Mapping[str, Any]) -> RowCheck:
    """The prompts, and whether there is a column for each parameter of the built-in rewards."""
    for reward, parameter, column in reward_columns(document):
        if column not in rows.column_names:
            raise DataError(
                f"the reward {reward!r} needs the column {column!r}, and the rows have "
                f"{', '.join(sorted(rows.column_names))}: add it, or say which one it is: "
                f"training.reward_options: {{{reward}: {{{parameter}: <column>}}}}"
            )
    return check_prompts(rows, indices, name=name)


def _check_source(key: str, source: str, read: ReadRows | None, *, drops: bool, unread: str) -> SourceCheck:
    path = local_file(source)
    if path is None:
        line = f"{key}: {source} is a name on the hub; its rows are looked at when the run begins"
        return SourceCheck(key, source, None, 0, None, (), (line,))
    found = peek(path)
    problems = [*_first(found.faults)]
    rows: RowCheck | None = None
    if found.rows is not None and read is not None:
        try:
            rows = read(found.rows, found.indices, name=source)
        except DataError as error:
            problems.append(str(error).replace("\n", " "))
    lines = [] if rows is None else list(_lines(key, source, found, rows))
    if unread:
        lines.append(f"{key}: {source}, {_count(found)}rows not looked at: {unread}")
    if rows is not None and rows.bad_rows:
        told = list(_first(list(map(str, rows.bad_rows))))
        if drops and rows.forms:
            lines += [f"  {len(rows.bad_rows)} of them will be dropped:", *(f"    {line}" for line in told)]
        else:
            problems += told
    keyed = tuple(f"{key}: {problem}" for problem in problems)
    num_checked = 0 if unread else len(found.indices)
    return SourceCheck(key, source, found.num_rows, num_checked, rows, keyed, tuple(lines), unread)


def _count(found: Peek) -> str:
    return "" if found.num_rows is None else f"{found.num_rows:,} "


def _lines(key: str, source: str, found: Peek, rows: RowCheck) -> Iterator[str]:
    of = "" if found.num_rows is None else f" of {found.num_rows:,}"
    forms = ", ".join(f"{count:,} {form}" for form, count in rows.forms.items()) or "none that can be trained on"
    yield f"{key}: {source}, the first {len(found.indices):,}{of} rows checked: {forms}"
    if rows.ignored_columns:
        yield f"  not read: {', '.join(rows.ignored_columns)}"


def _first(faults: Sequence[str]) -> Iterator[str]:
    yield from faults[:NUM_NAMED_ROWS]
    if len(faults) > NUM_NAMED_ROWS:
        yield f"… and {len(faults) - NUM_NAMED_ROWS} more"
