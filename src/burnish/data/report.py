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
from burnish.data.kwise import row_pairs
from burnish.data.numbers import SCORE_COLUMNS, TIE_COLUMN

NUM_LISTED_BAD_ROWS = 100
PROMPT_LENGTH, COMPLETION_LENGTHS = "prompt_length", "completion_lengths"
PAIR_LENGTHS = ("chosen_length", "rejected_length")
PAIR_COUNTS = ("num_pairs", "num_longer")
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
    "num_ties": "rows whose answers are tied: a pair in each order, which counts half",
    "num_equal_scores": "pairs of answers with the same score or rank, which are not trained",
    "num_scores_against_label": "rows whose scores say that the rejected answer is the better one",
    "num_ref_logps_of_cut_rows": "rows that were cut although they bring the reference's log-probs of whole answers",
}
BOOKKEEPING = frozenset([PROMPT_LENGTH, COMPLETION_LENGTHS, *PAIR_COUNTS, *COUNTS, "ignored_keys", "problem"])
_REPORTED = frozenset(["truncated", "scores", *SCORE_COLUMNS, TIE_COLUMN])


@dataclass(frozen=True)
class DataReport:
    """What became of a data set.

    Attributes:
        name: the data set's name in messages: train, eval.
        fingerprint: hash of all that is trained on, in order; the same on every machine.
        num_rows: rows that are left.
        num_pairs: pairs that they are; a tie is two, single answers are none.
        num_dropped: bad rows left out.
        dropped_share: their share of the rows that were given.
        bad_rows: the first of them.
        truncated_share: share of the rows left whose prompt or one of whose answers was cut, now or, as the column
            `truncated` of token ids says, before.
        counts: everything in `COUNTS`, over the rows that are left.
        mean_lengths, max_lengths: `prompt_length` in tokens; `chosen_length` and `rejected_length`, or
            `completion_length`, in trained tokens.
        chosen_longer_share: share of the pairs whose preferred answer has more trained tokens than the other one.
        scores: of the answers' scores, `mean`, `min`, `max` and `mean_difference`, preferred minus other answer, a
            mean over the pairs that are no ties; empty if the rows have no scores.
        ignored_columns: columns that nothing reads, and keys of messages as `messages.KEY`.
        is_head: these are the first rows of a stream, not all of it.
    """

    name: str
    fingerprint: str
    num_rows: int
    num_pairs: int
    num_dropped: int
    dropped_share: float
    bad_rows: tuple[BadRow, ...]
    truncated_share: float
    counts: Mapping[str, int]
    mean_lengths: Mapping[str, float]
    max_lengths: Mapping[str, int]
    chosen_longer_share: float
    scores: Mapping[str, float]
    ignored_columns: tuple[str, ...]
    is_head: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for a person: counts of zero are left out."""
        pairs = f", {self.num_pairs} pairs" if self.num_pairs not in (0, self.num_rows) else ""
        longer = f"; the preferred answer is longer in {self.chosen_longer_share:.0%} of the pairs"
        dropped = f", {self.num_dropped} bad rows dropped ({self.dropped_share:.1%})" if self.num_dropped else ""
        lengths = ", ".join(
            f"{name.removesuffix('_length')} {mean:.1f} (max {self.max_lengths[name]})"
            for name, mean in self.mean_lengths.items()
        )
        head = ", the first rows of a stream" if self.is_head else ""
        lines = [
            f"{self.name}{head}: {self.num_rows} rows{pairs}{dropped}; fingerprint {self.fingerprint}",
            f"  mean tokens: {lengths}{longer if self.num_pairs else ''}",
        ]
        if self.scores:
            lines.append(
                "  scores: {mean:.3g} ({min:g} to {max:g}), preferred minus other {mean_difference:.3g}".format(
                    **self.scores
                )
            )
        if self.truncated_share:
            lines.append(f"  {self.truncated_share:.1%} of the rows truncated")
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
    """The report over prepared rows that still have the columns of `BOOKKEEPING`.

    Args:
        mapped: rows that are left, at least one.
        name: the data set's name in messages.
        bad_rows: rows that are left out.
        ignored_columns: columns that nothing read.
        content_columns: the columns that the fingerprint covers.
    """
    counted = _table(mapped)
    totals = {column: int(_values(counted, column).sum()) for column in (*COUNTS, *PAIR_COUNTS)}
    lengths = _lengths(counted, of_pairs="chosen_input_ids" in mapped.column_names)
    return DataReport(
        name=name,
        fingerprint=content_fingerprint(mapped.select_columns(list(content_columns))),
        num_rows=len(mapped),
        num_pairs=totals["num_pairs"],
        num_dropped=len(bad_rows),
        dropped_share=len(bad_rows) / (len(bad_rows) + len(mapped)),
        bad_rows=tuple(bad_rows[:NUM_LISTED_BAD_ROWS]),
        truncated_share=sum(map(any, _array(counted, "truncated").to_pylist())) / len(mapped),
        counts={column: totals[column] for column in COUNTS},
        mean_lengths={column: float(values.mean()) for column, values in lengths.items()},
        max_lengths={column: int(values.max()) for column, values in lengths.items()},
        chosen_longer_share=totals["num_longer"] / max(totals["num_pairs"], 1),
        scores=_score_statistics(counted),
        ignored_columns=tuple(sorted(ignored_columns)),
    )


def content_fingerprint(dataset: Dataset) -> str:
    """32 hexadecimal digits over names, values and order of a data set of numbers and lists of them, at any depth."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        table = cast("pa.Table", batch)
        for column in sorted(table.column_names):
            array = table.column(column).combine_chunks()
            digest.update(column.encode())
            while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
                digest.update(_bytes(array.value_lengths()))
                array = array.flatten()
            digest.update(_bytes(array))
    return digest.hexdigest()


def _table(mapped: Dataset) -> pa.Table:
    """The columns that are counted, read in one go: each look at a data set of its own costs milliseconds."""
    columns = [name for name in mapped.column_names if name in BOOKKEEPING or name in _REPORTED]
    return cast("pa.Table", mapped.select_columns(columns).with_format("arrow")[:])


def _lengths(counted: pa.Table, *, of_pairs: bool) -> dict[str, np.ndarray]:
    """Tokens of the prompts, and trained tokens of the answers: of chosen and rejected, or of all completions."""
    prompts, completions = _values(counted, PROMPT_LENGTH), _values(counted, COMPLETION_LENGTHS)
    if not of_pairs:
        return {PROMPT_LENGTH: prompts, "completion_length": completions}
    return {PROMPT_LENGTH: prompts, **dict(zip(PAIR_LENGTHS, completions.reshape(-1, 2).T, strict=True))}


def _score_statistics(counted: pa.Table) -> dict[str, float]:
    present = [name for name in ("scores", *SCORE_COLUMNS, TIE_COLUMN) if name in counted.column_names]
    if not {"scores", SCORE_COLUMNS[0]}.intersection(present):
        return {}
    scores: list[float] = []
    differences: list[float] = []
    columns = [_array(counted, name).to_pylist() for name in present]
    for row in (dict(zip(present, values, strict=True)) for values in zip(*columns, strict=True)):
        of_row = row["scores"] if "scores" in row else [row[name] for name in SCORE_COLUMNS]
        scores += of_row
        differences += [of_row[better] - of_row[worse] for better, worse in row_pairs(row) if not row.get(TIE_COLUMN)]
    return {
        "mean": float(np.mean(scores)),
        "min": min(scores),
        "max": max(scores),
        "mean_difference": float(np.mean(differences)) if differences else 0.0,
    }


def _values(counted: pa.Table, column: str) -> np.ndarray:
    """The numbers of a column, those of lists one after the other."""
    array = _array(counted, column)
    return (array.flatten() if pa.types.is_list(array.type) else array).to_numpy(zero_copy_only=False)


def _array(counted: pa.Table, column: str) -> Any:
    return counted.column(column).combine_chunks()


def _bytes(array: Any) -> bytes:
    return array.to_numpy(zero_copy_only=False).tobytes()
