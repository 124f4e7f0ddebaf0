"""Rows that are token ids already -> the tokens of a row, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.errors import RowProblem
from burnish.data.kwise import (
    MIN_COMPLETIONS,
    completion_names,
    read_kwise_numbers,
    row_pairs,
)
from burnish.data.numbers import read_numbers
from burnish.data.schema import KWISE_IDS, KWISE_MASK, PAIR_IDS, PAIR_MASKS, PROMPT_COLUMN, TRUNCATED_COLUMN, is_kwise
from burnish.data.truncate import RowTokens


def read_tokens(row: Mapping[str, Any], vocabulary: int) -> tuple[RowTokens, dict[str, Any]]:
    """The tokens of a row, and its numbers. A missing mask trains the whole answer.

    Args:
        row: `prompt_input_ids` and the ids of chosen and rejected, or of several completions.
        vocabulary: ids are below it.

    Raises:
        RowProblem: no ids, masks of another length, or numbers that cannot be used.
    """
    prompt = _read_ids(PROMPT_COLUMN, row[PROMPT_COLUMN], vocabulary)
    if not is_kwise(row):
        ids = tuple(_read_ids(column, row[column], vocabulary) for column in PAIR_IDS)
        masks = tuple(_read_mask(name, row.get(name), len(own)) for name, own in zip(PAIR_MASKS, ids, strict=True))
        numbers = read_numbers(row)
        return RowTokens(prompt=prompt, completions=ids, masks=masks, pairs=row_pairs(numbers)), numbers
    names = completion_names(KWISE_IDS, _num_completions(row[KWISE_IDS]))
    ids = tuple(_read_ids(name, own, vocabulary) for name, own in zip(names, row[KWISE_IDS], strict=True))
    given = row.get(KWISE_MASK)
    if given is not None and (not isinstance(given, list) or len(given) != len(ids)):
        fix = f"Give a mask for each of {len(ids)} completions, or remove the column to train all tokens."
        raise RowProblem(KWISE_MASK, f"are no masks of {len(ids)} completions", value=given, fix=fix)
    masks = tuple(
        _read_mask(name, mask, len(own))
        for name, mask, own in zip(completion_names(KWISE_MASK, len(ids)), given or [None] * len(ids), ids, strict=True)
    )
    numbers = read_kwise_numbers(row, len(ids))
    tokens = RowTokens(
        prompt=prompt,
        completions=ids,
        masks=masks,
        names=names,
        pairs=row_pairs(numbers),
        num_completion_cut=(0,) * len(ids),
    )
    return tokens, numbers


def read_truncated(row: Mapping[str, Any], num_completions: int) -> list[bool]:
    """Which completions were cut, or behind a cut prompt, when the row was made.

    Raises:
        RowProblem: not True or False for each completion.
    """
    if row.get(TRUNCATED_COLUMN) is None:
        return [False] * num_completions
    return _read_mask(TRUNCATED_COLUMN, row[TRUNCATED_COLUMN], num_completions, of="completions")


def _num_completions(completions: Any) -> int:
    if not isinstance(completions, list) or len(completions) < MIN_COMPLETIONS:
        fix = "Give a list of at least two lists of token ids."
        raise RowProblem(KWISE_IDS, "are not several completions", value=completions, fix=fix)
    return len(completions)


def _read_ids(column: str, ids: Any, vocabulary: int) -> list[int]:
    fix = f"Give a list of token ids from 0 to {vocabulary - 1}."
    if not isinstance(ids, list) or not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise RowProblem(column, "is not a list of token ids", value=ids, fix=fix)
    for index, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise RowProblem(column, f"token {index} is not in the tokenizer's vocabulary", value=token, fix=fix)
    return ids


def _read_mask(column: str, mask: Any, length: int, *, of: str = "answer tokens") -> list[bool]:
    if mask is None:
        return [True] * length
    if not isinstance(mask, list) or len(mask) != length or not all(item in (0, 1) for item in mask):
        fix = f"Give True or False for each of {length} {of}, or remove the column."
        raise RowProblem(column, f"is no mask of {length} {of}", value=mask, fix=fix)
    return [bool(item) for item in mask]
