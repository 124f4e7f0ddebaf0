"""Faults of a data set that training would hide: found in the prepared rows, before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from burnish.data.images import DIGEST_COLUMN, image_columns

NUM_LISTED_ROWS = 5
NUM_ROWS_FOR_SHARES = 20
LONGER_SHARE = 0.75


@dataclass(frozen=True)
class Finding:
    """A fault of a data set.

    Attributes:
        code: what kind of fault; the same in every run.
        message: what it is and what to do about it.
        count: rows that have it.
        rows: the `row_id` of the first of them.
    """

    code: str
    message: str
    count: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Fingerprint:
    """A prepared row in short: its identity, hashes of its parts, and its lengths in trained tokens."""

    row_id: int
    prompt: bytes
    chosen: bytes
    rejected: bytes
    chosen_length: int
    rejected_length: int


def lint_preferences(dataset: Dataset, eval_datasets: Mapping[str, Dataset] | None = None) -> list[Finding]:
    """Faults of prepared preference rows.

    `duplicate_rows`: the same prompt, chosen and rejected again. `contradicting_pairs`: the same answers to
    the same prompt, once in each order. `length_bias`: of the rows with answers of different lengths, at
    least 20, more than 75 % prefer the longer (or the shorter) one. `eval_overlap`: prompts that are trained
    and evaluated.

    Args:
        dataset: the training rows, prepared.
        eval_datasets: evaluation rows by name, prepared.
    """
    rows = list(_fingerprints(dataset))
    findings = [_duplicates(rows), _contradictions(rows), _length_bias(rows)]
    findings += [_overlap(rows, name, held_out) for name, held_out in (eval_datasets or {}).items()]
    return [finding for finding in findings if finding is not None]


def _finding(code: str, message: str, row_ids: list[int]) -> Finding | None:
    return Finding(code, message, len(row_ids), tuple(row_ids[:NUM_LISTED_ROWS])) if row_ids else None


def _duplicates(rows: Iterable[Fingerprint]) -> Finding | None:
    seen: set[tuple[bytes, bytes, bytes]] = set()
    again: list[int] = []
    for row in rows:
        key = (row.prompt, row.chosen, row.rejected)
        if key in seen:
            again.append(row.row_id)
        seen.add(key)
    message = f"{len(again)} rows repeat an earlier row, which so counts twice or more. Remove them."
    return _finding("duplicate_rows", message, again)


def _contradictions(rows: Iterable[Fingerprint]) -> Finding | None:
    seen: set[tuple[bytes, bytes, bytes]] = set()
    against: list[int] = []
    for row in rows:
        if (row.prompt, row.rejected, row.chosen) in seen:
            against.append(row.row_id)
        seen.add((row.prompt, row.chosen, row.rejected))
    message = (
        f"{len(against)} rows prefer what an earlier row rejects, of the same answers to the same prompt: "
        "they cancel out. Keep one order of each pair, or set label_smoothing for noisy labels."
    )
    return _finding("contradicting_pairs", message, against)


def _length_bias(rows: Iterable[Fingerprint]) -> Finding | None:
    unequal = [row for row in rows if row.chosen_length != row.rejected_length]
    longer = [row.row_id for row in unequal if row.chosen_length > row.rejected_length]
    shorter = [row.row_id for row in unequal if row.chosen_length < row.rejected_length]
    word, biased = ("longer", longer) if len(longer) >= len(shorter) else ("shorter", shorter)
    if len(unequal) < NUM_ROWS_FOR_SHARES or len(biased) <= LONGER_SHARE * len(unequal):
        return None
    message = (
        f"the chosen answer is the {word} one in {len(biased) / len(unequal):.0%} of the rows whose lengths "
        "differ: length alone tells the preference, and the model learns it. Balance the lengths, or use a "
        "loss that is normalised by length."
    )
    return _finding("length_bias", message, biased)


def _overlap(rows: Iterable[Fingerprint], name: str, held_out: Dataset) -> Finding | None:
    trained = {row.prompt for row in rows}
    shared = [row.row_id for row in _fingerprints(held_out) if row.prompt in trained]
    message = (
        f"{len(shared)} rows of {name} have a prompt that is also trained on: {name} says little. "
        "Split by prompt, or remove these rows from one side."
    )
    return _finding("eval_overlap", message, shared)


def _fingerprints(dataset: Dataset) -> Iterator[Fingerprint]:
    without_images = dataset.remove_columns(image_columns(dataset))
    for batch in without_images.with_format("numpy").iter(batch_size=1000):
        assert isinstance(batch, dict)
        images = batch.get(DIGEST_COLUMN, [()] * len(batch["row_id"]))
        for index, row_id in enumerate(batch["row_id"]):
            yield Fingerprint(
                row_id=int(row_id),
                prompt=_digest(batch["prompt_input_ids"][index]) + str([*images[index]]).encode(),
                chosen=_digest(batch["chosen_input_ids"][index]),
                rejected=_digest(batch["rejected_input_ids"][index]),
                chosen_length=int(batch["chosen_loss_mask"][index].sum()),
                rejected_length=int(batch["rejected_loss_mask"][index].sum()),
            )


def _digest(ids: Any) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
