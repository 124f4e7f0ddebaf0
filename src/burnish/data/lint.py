"""Faults of a data set that training would hide: found in the prepared rows, before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from burnish.data.images import DIGEST_COLUMN, image_columns
from burnish.data.kwise import LABELS_COLUMN, row_pairs
from burnish.data.numbers import TIE_COLUMN
from burnish.data.schema import KWISE_IDS, KWISE_MASK, PAIR_IDS, PAIR_MASKS, PROMPT_COLUMN

NUM_LISTED_ROWS = 5
NUM_ROWS_FOR_SHARES = 20
LONGER_SHARE = 0.75
BALANCE = 4 / 3  # KTO (2402.01306) eq. 8


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
    """A pair of a prepared row in short: where it is, hashes of its parts, and its lengths in trained tokens."""

    row: int
    row_id: int
    prompt: bytes
    chosen: bytes
    rejected: bytes
    chosen_length: int
    rejected_length: int
    is_tie: bool


def lint_preferences(dataset: Dataset, eval_datasets: Mapping[str, Dataset] | None = None) -> list[Finding]:
    """Faults of prepared rows.

    `duplicate_rows`: the same prompt, chosen and rejected again, or the same judged answer. `contradicting_pairs`: the
    same answers to the same prompt, once in each order. `length_bias`: of the rows with answers of different lengths,
    at least 20, more than 75 % prefer the longer (or the shorter) one. `eval_overlap`: prompts that are trained and
    evaluated. Of rows of several completions every pair is looked at; a tie prefers neither answer.

    Args:
        dataset: the training rows, prepared.
        eval_datasets: evaluation rows by name, prepared.
    """
    pairs = list(_fingerprints(dataset))
    findings = [_duplicates(pairs), _contradictions(pairs), _length_bias(pairs)]
    findings += [_overlap(pairs, name, held_out) for name, held_out in (eval_datasets or {}).items()]
    return [finding for finding in findings if finding is not None]


def lint_labels(dataset: Dataset, *, desirable_weight: float, undesirable_weight: float) -> list[Finding]:
    """`unbalanced_labels`: desirable answers count less than undesirable ones, or more than 4/3 as much.

    Args:
        dataset: the training rows, prepared, with labels.
        desirable_weight: of each desirable answer.
        undesirable_weight: of each other one.
    """
    labels = [bool(label) for of_row in dataset[LABELS_COLUMN] for label in of_row]
    num_good = sum(labels)
    num_bad = len(labels) - num_good
    good, bad = desirable_weight * num_good, undesirable_weight * num_bad
    if bad <= good <= BALANCE * bad:
        return []
    advice = "there is nothing to tell apart"
    if good and bad:
        least, most = bad / num_good, BALANCE * bad / num_good
        advice = f"the paper advises a desirable_weight of {least:.3g} to {most:.3g} with undesirable_weight="
        advice += f"{undesirable_weight:g}"
    message = f"{num_good} answers are desirable and {num_bad} are not: {advice}."
    return [Finding("unbalanced_labels", message, len(labels), ())]


def _finding(code: str, message: str, row_ids: list[int]) -> Finding | None:
    return Finding(code, message, len(row_ids), tuple(row_ids[:NUM_LISTED_ROWS])) if row_ids else None


def _rows_of(pairs: Iterable[Fingerprint]) -> list[int]:
    """The `row_id` of the rows of pairs, each row once."""
    return list({pair.row: pair.row_id for pair in pairs}.values())


def _duplicates(pairs: Iterable[Fingerprint]) -> Finding | None:
    first: dict[tuple[bytes, bytes, bytes], int] = {}
    again = [pair for pair in pairs if first.setdefault((pair.prompt, pair.chosen, pair.rejected), pair.row) < pair.row]
    rows = _rows_of(again)
    message = f"{len(rows)} rows repeat a pair or answer of an earlier row, which so counts twice or more. Remove them."
    return _finding("duplicate_rows", message, rows)


def _contradictions(pairs: Iterable[Fingerprint]) -> Finding | None:
    seen: set[tuple[bytes, bytes, bytes]] = set()
    against: list[Fingerprint] = []
    for pair in pairs:
        if pair.is_tie:
            continue
        if (pair.prompt, pair.rejected, pair.chosen) in seen:
            against.append(pair)
        seen.add((pair.prompt, pair.chosen, pair.rejected))
    rows = _rows_of(against)
    message = (
        f"{len(rows)} rows prefer what an earlier row rejects, of the same answers to the same prompt: "
        "they cancel out. Keep one order of each pair, or set label_smoothing for noisy labels."
    )
    return _finding("contradicting_pairs", message, rows)


def _length_bias(pairs: Iterable[Fingerprint]) -> Finding | None:
    unequal = [pair for pair in pairs if pair.chosen_length != pair.rejected_length and not pair.is_tie]
    longer = [pair for pair in unequal if pair.chosen_length > pair.rejected_length]
    shorter = [pair for pair in unequal if pair.chosen_length < pair.rejected_length]
    word, biased = ("longer", longer) if len(longer) >= len(shorter) else ("shorter", shorter)
    if len(_rows_of(unequal)) < NUM_ROWS_FOR_SHARES or len(biased) <= LONGER_SHARE * len(unequal):
        return None
    message = (
        f"the chosen answer is the {word} one in {len(biased) / len(unequal):.0%} of the pairs whose lengths "
        "differ: length alone tells the preference, and the model learns it. Balance the lengths, or use a "
        "loss that is normalised by length."
    )
    return _finding("length_bias", message, _rows_of(biased))


def _overlap(pairs: Iterable[Fingerprint], name: str, held_out: Dataset) -> Finding | None:
    trained = {pair.prompt for pair in pairs}
    shared = _rows_of(pair for pair in _fingerprints(held_out) if pair.prompt in trained)
    message = (
        f"{len(shared)} rows of {name} have a prompt that is also trained on: {name} says little. "
        "Split by prompt, or remove these rows from one side."
    )
    return _finding("eval_overlap", message, shared)


def _fingerprints(dataset: Dataset) -> Iterator[Fingerprint]:
    """The pairs of all rows; a tie once."""
    without_images = dataset.remove_columns(image_columns(dataset))
    start = 0
    for batch in without_images.with_format("numpy").iter(batch_size=1000):
        assert isinstance(batch, dict)
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        for index, row in enumerate(rows, start=start):
            yield from _row_fingerprints(index, row)
        start += len(rows)


def _row_fingerprints(index: int, row: Mapping[str, Any]) -> Iterator[Fingerprint]:
    if LABELS_COLUMN in row:
        yield from _answer_fingerprints(index, row)
        return
    is_tie = bool(row.get(TIE_COLUMN, False))
    answers = row[KWISE_IDS] if KWISE_IDS in row else [row[column] for column in PAIR_IDS]
    masks = row[KWISE_MASK] if KWISE_IDS in row else [row[column] for column in PAIR_MASKS]
    digests, lengths = [_digest(ids) for ids in answers], [int(mask.sum()) for mask in masks]
    prompt = _digest(row[PROMPT_COLUMN]) + str([*row.get(DIGEST_COLUMN, ())]).encode()
    for chosen, rejected in row_pairs(row)[: 1 if is_tie else None]:
        yield Fingerprint(
            row=index,
            row_id=int(row["row_id"]),
            prompt=prompt,
            chosen=digests[chosen],
            rejected=digests[rejected],
            chosen_length=lengths[chosen],
            rejected_length=lengths[rejected],
            is_tie=is_tie,
        )


def _answer_fingerprints(index: int, row: Mapping[str, Any]) -> Iterator[Fingerprint]:
    """Each judged answer, as a tie with nothing. What is trained from its second token on is a prompt as a whole."""
    for ids, mask, label in zip(row[KWISE_IDS], row[KWISE_MASK], row[LABELS_COLUMN], strict=False):
        answer, prompt = _digest(ids), _digest(row[PROMPT_COLUMN])
        yield Fingerprint(
            row=index,
            row_id=int(row["row_id"]),
            prompt=prompt if len(row[PROMPT_COLUMN]) > 1 else prompt + answer,
            chosen=answer,
            rejected=bytes([int(label)]),
            chosen_length=int(mask.sum()),
            rejected_length=0,
            is_tie=True,
        )


def _digest(ids: Any) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
