"""Answers to other prompts: what a reference point is estimated from that does not depend on the answers themselves.

Each prepared row gets, behind its own completions, those of another row. Which one is drawn once, by the seed: the rows
stand in a ring, and each takes from the next one with another prompt. So neither micro-batches, nor steps, nor
processes matter, the reference can score these completions with all others before training, and each row is taken from
about once.

Example: three rows of one answer each, in the ring 2, 0, 1: row 2 gets the answer of row 0, row 0 that of row 1, row 1
that of row 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from datasets import Dataset

from burnish.data.errors import DataError
from burnish.data.sampler import permutation
from burnish.data.schema import KWISE_IDS, KWISE_MASK, PROMPT_COLUMN, TRUNCATED_COLUMN

OTHERS = {column: f"other_{column}" for column in (KWISE_IDS, KWISE_MASK)}
BATCH_SIZE = 256


def with_mismatched(rows: Dataset, *, seed: int, max_length: int | None, name: str) -> Dataset:
    """Prepared rows with labels, each with the completions of another one behind its own.

    Args:
        rows: as `prepare_preferences` returns them.
        seed: of the ring.
        max_length: longest prompt and completion; a longer completion loses its end.
        name: the data set's name in messages.

    Raises:
        DataError: all rows have one prompt.
    """
    others = rows.select(partners(list(rows[PROMPT_COLUMN]), seed=seed, name=name))
    others = others.select_columns(list(OTHERS)).rename_columns(OTHERS)
    both = datasets.concatenate_datasets([rows, others], axis=1)
    return both.map(
        _join,
        batched=True,
        batch_size=BATCH_SIZE,
        remove_columns=list(OTHERS.values()),
        features=rows.features,
        fn_kwargs={"max_length": max_length},
        desc=f"answers to other prompts for {name}",
    )


def partners(prompts: Sequence[Sequence[int]], *, seed: int, name: str) -> list[int]:
    """For each prompt the row that it takes answers from: the next one in the ring with another prompt.

    >>> partners([[1], [1], [2]], seed=0, name="train")
    [2, 2, 0]

    Raises:
        DataError: there is no other prompt.
    """
    ring = permutation(len(prompts), seed, 0)
    if all(prompt == prompts[0] for prompt in prompts):
        raise DataError(
            f"{name}: all rows have the same prompt, and the loss needs answers to other prompts. Give rows of several "
            "prompts, or choose loss_type apo_zero_unpaired"
        )
    found = [0] * len(prompts)
    partner: int | None = None
    for place in range(2 * len(ring) - 1, -1, -1):  # backwards, twice around: the end of the ring knows its partner too
        row, following = ring[place % len(ring)], ring[(place + 1) % len(ring)]
        partner = following if prompts[following] != prompts[row] else partner
        found[row] = following if partner is None else partner
    return found


def _join(batch: Mapping[str, list[Any]], *, max_length: int | None) -> dict[str, list[Any]]:
    columns = dict(batch)
    for own, other in OTHERS.items():
        columns[own] = [
            [*mine, *(ids[: None if max_length is None else max_length - len(prompt)] for ids in theirs)]
            for mine, theirs, prompt in zip(columns[own], columns.pop(other), columns[PROMPT_COLUMN], strict=True)
        ]
    columns[TRUNCATED_COLUMN] = [
        [*cut, *[False] * (len(ids) - len(cut))]
        for cut, ids in zip(columns[TRUNCATED_COLUMN], columns[KWISE_IDS], strict=True)
    ]
    return columns
