"""Prepared rows -> parcels. Padding is decided here, and only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.data.errors import DataError
from burnish.types import PreferenceBatch

Row = Mapping[str, Any]


class PreferenceCollator:
    """Prepared preference rows -> `PreferenceBatch`.

    The chosen answer of the i-th row is completion 2i, the rejected one 2i + 1; both point at prompt i.
    Prompts are padded on the left, completions on the right, each to its own longest. A row with `is_filler`
    gives a batch that counts for nothing.

    Args:
        pad_token_id: fills the padding; no mask depends on it, and it may be any token.
        pad_to_multiple_of: rounds both lengths up, or None.

    Example: a prompt of two tokens with answers of two and one tokens: prompt_ids (1, 2), completion_ids (2,
    2), completion_mask [[True, True], [True, False]], prompt_index [0, 0], pairs [[0, 1]].
    """

    def __init__(self, pad_token_id: int, *, pad_to_multiple_of: int | None = None) -> None:
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, int) or pad_token_id < 0:
            raise ValueError(f"pad_token_id={pad_token_id!r} is no token id; pass tokenizer.pad_token_id, or its eos")
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of!r} is not allowed: 1 or more, or None")
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of or 1

    def __call__(self, rows: Sequence[Row]) -> PreferenceBatch:
        """One parcel of all rows.

        Raises:
            DataError: a number (reference log-prob, weight, margin) that some rows have and others do not.
        """
        num_rows = len(rows)
        prompts = [row["prompt_input_ids"] for row in rows]
        answers = [row[f"{answer}_input_ids"] for row in rows for answer in ("chosen", "rejected")]
        masks = [row[f"{answer}_loss_mask"] for row in rows for answer in ("chosen", "rejected")]
        prompt_ids, prompt_mask = self._pad(prompts, left=True)
        completion_ids, completion_mask = self._pad(answers)
        loss_mask, _ = self._pad(masks)  # padded with ids: only what completion_mask keeps counts
        row_id = torch.tensor([row["row_id"] for row in rows], dtype=torch.int64)  # (P,)
        return PreferenceBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids,
            completion_mask=completion_mask,
            loss_mask=loss_mask.bool() & completion_mask,
            prompt_index=torch.arange(num_rows).repeat_interleave(2),
            row_id=row_id.repeat_interleave(2),
            pairs=torch.arange(2 * num_rows).view(num_rows, 2),
            ref_logps=_numbers(rows, ("ref_chosen_logps", "ref_rejected_logps"), dtype=torch.float64),
            ref_token_logps=_token_numbers(
                rows, ("ref_chosen_token_logps", "ref_rejected_token_logps"), width=completion_ids.shape[1]
            ),
            weight=_numbers(rows, ("weight",)),
            margin=_margins(rows),
            is_filler=any(row.get("is_filler", False) for row in rows),
        )

    def _pad(self, sequences: Sequence[Sequence[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Ids and mask (rows, longest); at least one column, so that no shape is empty."""
        longest = max(1, *map(len, sequences))
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        ids = torch.full((len(sequences), width), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros((len(sequences), width), dtype=torch.bool)
        for index, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[index, place] = torch.tensor(sequence, dtype=torch.int64)
            mask[index, place] = True
        return ids, mask


def _margins(rows: Sequence[Row]) -> Tensor | None:
    """The column `margin`, else how much higher the chosen answer is scored, (rows,); None if neither is given."""
    margins, scores = _numbers(rows, ("margin",)), _numbers(rows, ("score_chosen", "score_rejected"))
    if margins is not None or scores is None:
        return margins
    return scores[0::2] - scores[1::2]


def _numbers(rows: Sequence[Row], columns: Sequence[str], *, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """The columns row by row, (rows * columns,), or None if no row has them."""
    values = _given(rows, columns)
    return torch.tensor(values, dtype=dtype) if values else None


def _token_numbers(rows: Sequence[Row], columns: Sequence[str], *, width: int) -> Tensor | None:
    """Columns of lists row by row, padded with 0: (rows * columns, width), or None if no row has them."""
    lists = _given(rows, columns)
    if not lists:
        return None
    numbers = torch.zeros(len(lists), width, dtype=torch.float64)
    for index, values in enumerate(lists):
        numbers[index, : len(values)] = torch.tensor(values, dtype=torch.float64)
    return numbers


def _given(rows: Sequence[Row], columns: Sequence[str]) -> list[Any]:
    """The columns row by row; empty if no row has them.

    Raises:
        DataError: some rows have them and others do not.
    """
    values = [row.get(column) for row in rows for column in columns]
    if all(value is None for value in values):
        return []
    if None in values:
        missing = rows[values.index(None) // len(columns)]["row_id"]
        raise DataError(
            f"row {missing} has no {' or no '.join(columns)}, but other rows of its batch have. "
            "Give every row the number, or remove the column."
        )
    return values
