"""Log-probs of all completions of a data set: as one flat tensor, and as columns of its rows.

The tensor goes row by row, in a row completion by completion (chosen, rejected; or as the row lists them), with one
value for each completion, or one for each of its stored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch

from burnish.data.kwise import KWISE_REF_COLUMN, KWISE_TOKEN_COLUMN
from burnish.data.numbers import REF_COLUMNS, TOKEN_COLUMNS
from burnish.data.schema import KWISE_IDS, PAIR_IDS, PROMPT_COLUMN

if TYPE_CHECKING:
    from datasets import Dataset
    from jaxtyping import Float, Int
    from torch import Tensor

    from burnish.types import TokenBatch

READ_AT_A_TIME = 10_000  # rows


@dataclass(frozen=True)
class FlatLayout:
    """Where each completion's values stand.

    Attributes:
        first: (rows + 1,) the number of each row's first completion, and of all completions.
        start: (completions + 1,) the place of each completion's first value, and the number of all values.

    Example: a row of two completions and one of three, one value each: first [0, 2, 5], start [0, 1, 2, 3, 4, 5].
    """

    first: Int[np.ndarray, "rows1"]
    start: Int[np.ndarray, "completions1"]

    @property
    def num_values(self) -> int:
        """Of all completions."""
        return int(self.start[-1])

    def completions(self, rows: Sequence[int]) -> Int[np.ndarray, "N"]:
        """The numbers of the completions of some rows, row by row."""
        return np.concatenate([np.arange(self.first[row], self.first[row + 1]) for row in rows])

    def row_of(self, places: Int[np.ndarray, "K"]) -> Int[np.ndarray, "K"]:
        """The row of each place."""
        completions = np.searchsorted(self.start, places, side="right") - 1
        return np.searchsorted(self.first, completions, side="right") - 1


def flat_layout(dataset: Dataset, *, per_token: bool) -> FlatLayout:
    """The layout of prepared rows: one value for each stored token of a completion, or one for each completion."""
    counts, lengths = completion_lengths(dataset)
    sizes = lengths if per_token else np.ones_like(lengths)
    return FlatLayout(first=_ends(counts), start=_ends(sizes))


def completion_lengths(dataset: Dataset) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "completions"]]:
    """How many completions each row has, and how many tokens each completion, row by row."""
    if KWISE_IDS in dataset.column_names:
        counts = _per_row(dataset, KWISE_IDS, lambda lists: lists.value_lengths())
        return counts, _per_row(dataset, KWISE_IDS, lambda lists: lists.flatten().value_lengths())
    lengths = np.stack([_lengths(dataset, column) for column in PAIR_IDS], axis=1)  # (rows, 2)
    return np.full(len(lengths), len(PAIR_IDS)), lengths.ravel()


def row_lengths(dataset: Dataset) -> Int[np.ndarray, "rows"]:
    """Tokens of each row's prompt and longest completion together."""
    counts, lengths = completion_lengths(dataset)
    return _lengths(dataset, PROMPT_COLUMN) + np.maximum.reduceat(lengths, _ends(counts)[:-1])


def largest_ids(dataset: Dataset) -> Int[np.ndarray, "rows"]:
    """The largest token id of each row."""
    columns = [PROMPT_COLUMN, *(PAIR_IDS if KWISE_IDS not in dataset.column_names else [KWISE_IDS])]
    return np.stack([_per_row(dataset, column, _largest) for column in columns]).max(0)


def scoring_order(dataset: Dataset) -> list[int]:
    """Rows by falling length of prompt and longest completion, equal ones in their own order."""
    return np.argsort(-row_lengths(dataset), kind="stable").tolist()


def place_values(
    batch: TokenBatch, logps: Float[Tensor, "N T1"], rows: Sequence[int], layout: FlatLayout
) -> Float[Tensor, "K 2"]:
    """Each value of a parcel with its place in the flat tensor, in float64, which holds both exactly.

    Args:
        batch: the parcel of these rows: its i-th prompt, with its completions in their order, is the i-th row's.
        logps: per token (N, T), or summed over each completion (N, 1), as the layout.
        rows: of the data set.
        layout: of the data set.

    Raises:
        ValueError: the parcel has other completions than the rows.
    """
    completions = layout.completions(rows)  # (N,)
    counts = np.diff(layout.first)[list(rows)].tolist()
    found = torch.bincount(batch.prompt_index.cpu(), minlength=len(rows)).tolist()
    if found != counts:
        raise ValueError(
            f"the data_collator made {sum(found)} completions of {len(rows)} rows that have {sum(counts)}, and "
            "precompute_ref_log_probs=True needs each row's own, in their order: set it to False"
        )
    order = torch.argsort(batch.prompt_index.cpu(), stable=True)  # of the parcel's rows, as in the layout
    start, end = (torch.from_numpy(layout.start[completions + offset]) for offset in (0, 1))  # (N,)
    places = start[:, None] + torch.arange(logps.shape[1])  # (N, T1)
    keep = places < end[:, None]
    return torch.stack([places[keep].double(), logps.cpu()[order][keep].double()], dim=1)


def with_logps(dataset: Dataset, values: Float[Tensor, "R"], *, per_token: bool) -> Dataset:
    """The rows with the log-probs of their completions: numbers, or lists of one number for each stored token.

    Pairs get two columns, of chosen and of rejected; rows of several completions one, of lists.
    """
    layout, flat = flat_layout(dataset, per_token=per_token), values.numpy()
    if KWISE_IDS in dataset.column_names:
        column = _lists(layout.start, flat) if per_token else flat
        return _add(dataset, KWISE_TOKEN_COLUMN if per_token else KWISE_REF_COLUMN, _lists(layout.first, column))
    sizes = np.diff(layout.start)
    answer = np.repeat(np.arange(len(sizes)) % len(PAIR_IDS), sizes)  # of each value
    for number, name in enumerate(TOKEN_COLUMNS if per_token else REF_COLUMNS):
        own = flat[answer == number]
        dataset = _add(dataset, name, _lists(_ends(sizes[number :: len(PAIR_IDS)]), own) if per_token else own)
    return dataset


def _add(dataset: Dataset, name: str, column: Any) -> Dataset:
    return dataset.add_column(name, column)  # pyright: ignore[reportCallIssue]


def _lists(ends: Int[np.ndarray, "lists1"], values: Any) -> Any:
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)


def _ends(sizes: Int[np.ndarray, "items"]) -> Int[np.ndarray, "items1"]:
    """Where each item begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _lengths(dataset: Dataset, column: str) -> Int[np.ndarray, "rows"]:
    return _per_row(dataset, column, lambda lists: lists.value_lengths())


def _largest(lists: Any) -> Any:
    """The largest number of each list, at any depth; -1 for one without any."""
    ends = np.arange(len(lists) + 1)
    while pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type):
        ends = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())])[ends]
        lists = lists.flatten()
    values = np.append(lists.to_numpy(), -1)
    found = np.maximum.reduceat(values, ends[:-1])
    return pa.array(np.where(np.diff(ends) > 0, found, -1))


def _per_row(dataset: Dataset, column: str, measure: Callable[[Any], Any]) -> np.ndarray:
    """A measure of the lists of a column, read a part at a time."""
    parts = dataset.select_columns([column]).with_format("arrow").iter(batch_size=READ_AT_A_TIME)
    tables = cast("Iterator[pa.Table]", parts)
    return np.concatenate([measure(table.column(0).combine_chunks()).to_numpy() for table in tables])
