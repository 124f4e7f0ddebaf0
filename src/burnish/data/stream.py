"""Streams: rows that come one after the other, are prepared when they are needed, and are passed once.

    source -> (shuffle buffer) -> rows 0, 1, 2, ... -> rank r of W takes r, r + W, ... -> prepared -> micro-batches

The first rows are checked as a data set is; of what follows, a bad row is left out, named and counted. Every rank reads
the whole source and prepares its own rows only. A rank's rows go in chunks through the tokenizer; its place is the
start of a chunk and how many of its rows were taken, so that a resumed run reads on at the very next row.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from burnish.data.errors import BadRow, DataError
from burnish.data.images import encode_rows
from burnish.data.kinds import PREFERENCES
from burnish.data.numbers import REF_COLUMNS
from burnish.data.parts import IMAGE_COLUMNS
from burnish.data.report import COUNTS, DataReport
from burnish.data.schema import split_ref_logps
from burnish.data.sources import load_rows
from burnish.data.tokenize import Preparation, ignored_keys, plan_preparation, prepare_preferences
from burnish.data.truncate import TruncationPolicy

NUM_CHECKED = 1000
CHUNK_ROWS = 32
NUM_LISTED_ROWS = 1000
NO_ROWS = ""
NUM_READ, NUM_DROPPED = "num_read", "num_dropped"
STREAM_COUNTS = (NUM_READ, NUM_DROPPED, *COUNTS)
NOTHING = dict.fromkeys(STREAM_COUNTS, 0)

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class RowStream:
    """A stream of rows whose first ones were checked.

    Attributes:
        source: the rows as they come.
        name: the data set's name in messages.
        head: the first rows, prepared.
        preparation: how the rows become records.
        known: the columns of the first rows, and the keys of their messages that are not read. Others that come later
            are not read either.
        shuffle_buffer_size: rows among which the next one is drawn, or None for the source's order.
        seed: of the draws.
    """

    source: IterableDataset
    name: str
    head: Dataset
    preparation: Preparation
    known: frozenset[str]
    shuffle_buffer_size: int | None = None
    seed: int = 0

    @property
    def column_names(self) -> list[str]:
        """The columns of prepared rows."""
        return self.head.column_names


def prepare_stream(
    source: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    truncation: TruncationPolicy,
    on_bad_row: str = "error",
    eos_token_ids: Sequence[int] = (),
    num_proc: int | None = None,
    name: str = "train",
    processor: ProcessorMixin | None = None,
    keep_template_end: bool = False,
    kind: str = PREFERENCES,
    whole: Collection[str] = (),
    shuffle_buffer_size: int | None = None,
    seed: int = 0,
) -> tuple[RowStream, DataReport]:
    """Check the first `NUM_CHECKED` rows of a stream; arguments as in `prepare_preferences` and `RowStream`.

    Returns:
        The stream, from its start, and the report on its first rows.

    Raises:
        DataError: no rows, a missing column, or bad rows among the first ones under `error`.
        ValueError: a size that is not allowed.
    """
    if shuffle_buffer_size is not None and shuffle_buffer_size < 2:
        raise ValueError(f"shuffle_buffer_size={shuffle_buffer_size}; allowed: 2 or more, or None for the own order")
    source = _encoded(source)
    given = _first_rows(source, name=name)
    options: dict[str, Any] = {
        "truncation": truncation,
        "eos_token_ids": eos_token_ids,
        "name": name,
        "processor": processor,
        "keep_template_end": keep_template_end,
        "kind": kind,
        "whole": whole,
    }
    head, report = prepare_preferences(given, tokenizer, on_bad_row=on_bad_row, num_proc=num_proc, **options)
    known = split_ref_logps(given, name=name) if kind == PREFERENCES else given
    preparation = plan_preparation(known, tokenizer, **options)
    stream = RowStream(
        source=source,
        name=name,
        head=head,
        preparation=preparation,
        known=frozenset([*given.column_names, *report.ignored_columns]),
        shuffle_buffer_size=shuffle_buffer_size,
        seed=seed,
    )
    return stream, replace(report, is_head=True)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Where a chunk begins, and which rows it is: enough to find it again and to know it."""

    source_state: str | None  # of `datasets`, as JSON, if it can be had
    position: int = 0  # rows before it, those of all ranks
    digest: str = NO_ROWS  # over these rows
    end_digest: str = NO_ROWS  # over those of the chunk too
    counts: Mapping[str, int] = field(default_factory=lambda: dict(NOTHING))  # of this rank's rows before it


class RankStream:
    """The rows of a stream that one rank trains on, each handed out once.

    Args:
        stream: where they come from.
        rank: which rank this is, of `num_replicas`.
        num_replicas: ranks that share the rows.

    Attributes:
        counts: of this rank's rows so far, those of `STREAM_COUNTS`.
        dropped: the places of the first bad rows in the source.
        unread: columns, and keys of messages, that the first rows do not have and that are not read.
        num_batches: micro-batches that were handed out; whoever takes them counts.
    """

    def __init__(self, stream: RowStream, *, rank: int = 0, num_replicas: int = 1) -> None:
        self.stream, self.rank, self.num_replicas = stream, rank, num_replicas
        self.num_batches = 0
        self.counts: Mapping[str, int] = dict(NOTHING)
        self.dropped: list[int] = []
        self.unread: set[str] = set()
        self._newly_dropped: list[BadRow] = []
        self._begin(_Chunk(source_state=None))

    def take(self, count: int) -> list[dict[str, Any]]:
        """The next prepared rows, `count` of them or what is left."""
        rows: list[dict[str, Any]] = []
        while len(rows) < count and self.has_more():
            rows.append(self._ready.popleft())
            self._num_taken += 1
        return rows

    def has_more(self) -> bool:
        """Whether a good row is left; reads on until there is one."""
        while not self._ready and not self._at_end:
            before = self._chunk
            self._read(
                _Chunk(
                    source_state=self._source_state(),
                    position=self._position,
                    digest=before.end_digest,
                    counts=self.counts,
                )
            )
        return bool(self._ready)

    def filler(self) -> dict[str, Any]:
        """A row that counts for nothing, for a rank that has none left."""
        return {**self.stream.head[0], "is_filler": True}

    def newly_dropped(self) -> list[BadRow]:
        """The bad rows that were found since the last call."""
        found, self._newly_dropped = self._newly_dropped, []
        return found

    def state_dict(self) -> dict[str, Any]:
        """The place of the next row."""
        place = {"chunk": asdict(self._chunk), "num_taken": self._num_taken, "num_batches": self.num_batches}
        return {**place, "dropped": list(self.dropped), "unread": sorted(self.unread)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: by the source's own state if that leads there, else by reading again.

        Raises:
            DataError: the source's rows are no longer what they were.
        """
        chunk, num_taken = _Chunk(**state["chunk"]), state["num_taken"]
        self.dropped, self.unread, self.num_batches = list(state["dropped"]), set(state["unread"]), state["num_batches"]
        found = chunk.source_state is not None and self._find(chunk)
        if not found and not self._find(replace(chunk, source_state=None)):
            raise DataError(
                f"{self.stream.name}: the rows of the stream are no longer those that this run was trained on; it had "
                f"read {chunk.position} of them. Give the same rows in the same order, or start a new run."
            )
        for _ in range(num_taken):
            self._ready.popleft()
        self._num_taken = num_taken
        self._newly_dropped.clear()

    def _find(self, chunk: _Chunk) -> bool:
        """Read a chunk again; False if there are other rows now."""
        if chunk.source_state is not None:
            self._begin(chunk)
        else:
            self._begin(_Chunk(source_state=None))
            skipped = _chained(NO_ROWS, islice(self._rows, chunk.position))
            if skipped != chunk.digest:
                return False
        self._read(chunk)
        return self._chunk.end_digest == chunk.end_digest

    def _begin(self, chunk: _Chunk) -> None:
        """Open the source at a chunk, or at its start."""
        self._source = self.stream.source.with_format(None)  # a copy, whose state is its own
        if chunk.source_state is not None:
            self._source.load_state_dict(json.loads(chunk.source_state))
        numbered = enumerate(self._source, start=chunk.position)
        size = self.stream.shuffle_buffer_size
        self._rows = numbered if size is None else _shuffled(numbered, size, self.stream.seed)
        self._chunk, self._position, self._num_taken = chunk, chunk.position, 0
        self._ready: deque[dict[str, Any]] = deque()
        self._at_end = False

    def _source_state(self) -> str | None:
        if self.stream.shuffle_buffer_size is not None:
            return None  # it does not say what is in the buffer
        try:
            return json.dumps(self._source.state_dict())
        except TypeError:
            return None

    def _read(self, chunk: _Chunk) -> None:
        """Read and prepare the rows of a chunk, at whose start the source is."""
        rows = list(islice(self._rows, CHUNK_ROWS * self.num_replicas))
        self._chunk = replace(chunk, end_digest=_chained(chunk.digest, rows))
        self._position, self._num_taken, self._at_end = chunk.position + len(rows), 0, not rows
        records = self._prepare(rows[self.rank :: self.num_replicas])
        bad = [BadRow(**json.loads(record["problem"])) for record in records if record["problem"]]
        good = [record for record in records if not record["problem"]]
        columns = self.stream.column_names
        self._ready = deque({column: record[column] for column in columns} for record in good)
        found = {NUM_READ: len(records), NUM_DROPPED: len(bad)}
        found |= {name: sum(record[name] for record in good) for name in COUNTS}
        self.counts = {name: chunk.counts[name] + found[name] for name in STREAM_COUNTS}
        self.dropped = [*self.dropped[: chunk.counts[NUM_DROPPED]], *(row.row for row in bad)][:NUM_LISTED_ROWS]
        self._newly_dropped += bad

    def _prepare(self, rows: Sequence[tuple[int, Row]]) -> list[dict[str, Any]]:
        if not rows:
            return []
        given = [_with_ref_columns(row) for row in encode_rows([row for _, row in rows])]
        records = self.stream.preparation.records(given, [index for index, _ in rows])
        columns, keys = (column for _, row in rows for column in row), (record["ignored_keys"] for record in records)
        self.unread |= {*columns, *ignored_keys(keys)} - self.stream.known
        return records


def _encoded(source: IterableDataset) -> IterableDataset:
    """The source with its images as `{"bytes": ..., "path": ...}`, where it says which columns they are."""
    source = source.with_format(None)
    features = source.features
    return source if features is None or not set(IMAGE_COLUMNS) & features.keys() else source.decode(False)


def _first_rows(source: IterableDataset, *, name: str) -> Dataset:
    rows = list(islice(source, NUM_CHECKED))
    if not rows:
        raise DataError(f"{name}: the stream has no rows. Check its path, split and filters.")
    if source.features is None:
        return load_rows(rows)
    return Dataset.from_list(rows, features=source.features)


def _with_ref_columns(row: Row) -> Row:
    """`ref_logps` of a row under TRL's two names; what is no pair becomes null there, which is a bad row."""
    if "ref_logps" not in row:
        return row
    pair = row["ref_logps"]
    values = pair if isinstance(pair, list) and len(pair) == len(REF_COLUMNS) else [None] * len(REF_COLUMNS)
    return {**row, **dict(zip(REF_COLUMNS, values, strict=True))}


def _shuffled(rows: Iterator[tuple[int, Row]], size: int, seed: int) -> Iterator[tuple[int, Row]]:
    """Each row drawn from a buffer of `size` of them, which the next one of the source then fills up."""
    draw = random.Random(seed)
    buffer = list(islice(rows, size))
    for row in rows:
        place = draw.randrange(size)
        drawn, buffer[place] = buffer[place], row
        yield drawn
    draw.shuffle(buffer)
    yield from buffer


def _chained(digest: str, rows: Iterable[tuple[int, Row]]) -> str:
    """A hash over rows and the hash of those before them."""
    for _, row in rows:
        content = digest + repr(row)
        digest = hashlib.blake2b(content.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
    return digest
