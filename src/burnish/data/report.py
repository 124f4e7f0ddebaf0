"""What preparing a data set did to it: every row dropped, token cut and token left untrained, as numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset

from burnish.data.errors import BadRow

NUM_LISTED_BAD_ROWS = 100
LENGTHS = ("prompt_length", "chosen_length", "rejected_length")
COUNTS: Mapping[str, str] = {
    "num_prompts_cut": "rows whose prompt lost its start",
    "num_prompt_tokens_cut": "prompt tokens cut off",
    "num_completions_cut": "answers that lost their end, and their end-of-sequence token with it",
    "num_completion_tokens_cut": "answer tokens cut off",
    "num_straddling_tokens": "tokens across the start or end of an answer, not trained",
    "num_prompt_tokens_in_completions": "prompt tokens that chosen and rejected do not share, not trained",
    "num_untrained_tokens": "tokens in the answers that are not trained",
    "num_untrained_turns": "assistant turns that the chat template rewrites later on, not trained",
    "num_reworded_prompts": "answers before which the chat template words the prompt anew",
    "num_template_tokens_removed": "tokens that the chat template puts after the last end token, removed",
    "num_without_eos": "answers without an end-of-sequence token: the model does not learn to stop",
}


@dataclass(frozen=True)
class DataReport:
    """What became of a data set.

    Attributes:
        name: the data set's name in messages: train, eval.
        fingerprint: hash of all that is trained on, in order; the same on every machine.
        num_rows: rows that are left.
        num_dropped: bad rows left out.
        bad_rows: the first of them.
        counts: everything in `COUNTS`, over the rows that are left.
        mean_lengths, max_lengths: `prompt_length` in tokens; `chosen_length`, `rejected_length` in trained
        tokens. chosen_longer_share: share of rows whose chosen answer has more trained tokens than the
        rejected one. ignored_columns: columns that nothing reads, and keys of messages as `messages.KEY`.
    """

    name: str
    fingerprint: str
    num_rows: int
    num_dropped: int
    bad_rows: tuple[BadRow, ...]
    counts: Mapping[str, int]
    mean_lengths: Mapping[str, float]
    max_lengths: Mapping[str, int]
    chosen_longer_share: float
    ignored_columns: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for a person: counts of zero are left out."""
        dropped = f", {self.num_dropped} bad rows dropped" if self.num_dropped else ""
        lengths = ", ".join(
            f"{name.removesuffix('_length')} {self.mean_lengths[name]:.1f} (max {self.max_lengths[name]})"
            for name in LENGTHS
        )
        lines = [
            f"{self.name}: {self.num_rows} rows{dropped}; fingerprint {self.fingerprint}",
            f"  mean tokens: {lengths}; chosen is longer in {self.chosen_longer_share:.0%} of the rows",
        ]
        lines += [f"  {self.counts[name]} {meaning}" for name, meaning in COUNTS.items() if self.counts[name]]
        lines += [f"  dropped {bad}" for bad in self.bad_rows[:3]]
        if self.ignored_columns:
            lines.append(f"  not read: {', '.join(self.ignored_columns)}")
        return lines


def make_report(
    mapped: Dataset,
    *,
    name: str,
    bad_rows: Sequence[BadRow],
    ignored_columns: Sequence[str],
    content_columns: Sequence[str],
) -> DataReport:
    """The report over prepared rows that still have their columns of counts and lengths.

    Args:
        mapped: rows that are left, at least one.
        name: the data set's name in messages.
        bad_rows: rows that are left out.
        ignored_columns: columns that nothing read.
        content_columns: the columns that the fingerprint covers.
    """
    numbers = mapped.with_format("numpy")
    lengths = {column: np.asarray(numbers[column][:]) for column in LENGTHS}
    return DataReport(
        name=name,
        fingerprint=content_fingerprint(mapped.select_columns(list(content_columns))),
        num_rows=len(mapped),
        num_dropped=len(bad_rows),
        bad_rows=tuple(bad_rows[:NUM_LISTED_BAD_ROWS]),
        counts={column: int(np.asarray(numbers[column][:]).sum()) for column in COUNTS},
        mean_lengths={column: float(values.mean()) for column, values in lengths.items()},
        max_lengths={column: int(values.max()) for column, values in lengths.items()},
        chosen_longer_share=float((lengths["chosen_length"] > lengths["rejected_length"]).mean()),
        ignored_columns=tuple(sorted(ignored_columns)),
    )


def content_fingerprint(dataset: Dataset) -> str:
    """32 hexadecimal digits over names, values and order of a data set of numbers and lists of numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        table = cast("pa.Table", batch)
        for column in sorted(table.column_names):
            array = table.column(column).combine_chunks()
            digest.update(column.encode())
            if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
                digest.update(_bytes(array.value_lengths()))
                array = array.flatten()
            digest.update(_bytes(array))
    return digest.hexdigest()


def _bytes(array: Any) -> bytes:
    return array.to_numpy(zero_copy_only=False).tobytes()
