"""Prepared rows -> parcels. Padding is decided here, and only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from burnish.data.errors import DataError
from burnish.data.kwise import KWISE_REF_COLUMN, KWISE_TOKEN_COLUMN, LABELS_COLUMN, row_pairs
from burnish.data.numbers import REF_COLUMNS, SCORE_COLUMNS, TIE_COLUMN, TOKEN_COLUMNS
from burnish.data.schema import (
    KWISE_IDS,
    KWISE_MASK,
    PAIR_IDS,
    PAIR_MASKS,
    PROMPT_COLUMN,
    SOURCE_COLUMN,
    TRUNCATED_COLUMN,
)
from burnish.types import Completion, PreferenceBatch, RolloutBatch

Row = Mapping[str, Any]


class PreferenceCollator:
    """Prepared preference rows -> `PreferenceBatch`.

    Prompt i is that of the i-th row; the completions of a row stand one after the other: chosen and rejected, or as
    many as it has. `pairs` are those of each row in turn: chosen and rejected; for a tie both orders, each with half
    the row's weight, and the margin's sign turned in the second; of graded completions all of which one is graded
    better, each with the row's weight; of answers with labels none. `margin` is the column of that name, else the
    difference of scores.

    Prompts are padded on the left, completions on the right, each to its own longest. A row with `is_filler`
    gives a batch that counts for nothing.

    Args:
        pad_token_id: fills the padding; no mask depends on it, and it may be any token.
        pad_to_multiple_of: rounds both lengths up, or None.
        margin_from_scores: rows without a margin have the difference of their scores.

    Example: a prompt of two tokens with answers of two and one tokens: prompt_ids (1, 2), completion_ids (2,
    2), completion_mask [[True, True], [True, False]], prompt_index [0, 0], pairs [[0, 1]].
    """

    def __init__(
        self, pad_token_id: int, *, pad_to_multiple_of: int | None = None, margin_from_scores: bool = True
    ) -> None:
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, int) or pad_token_id < 0:
            raise ValueError(f"pad_token_id={pad_token_id!r} is no token id; pass tokenizer.pad_token_id, or its eos")
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of!r} is not allowed: 1 or more, or None")
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of or 1
        self.margin_from_scores = margin_from_scores

    def __call__(self, rows: Sequence[Row]) -> PreferenceBatch:
        """One parcel of all rows.

        Raises:
            DataError: a column of numbers that some rows have and others do not.
        """
        answers = [row.get(KWISE_IDS) or [row[column] for column in PAIR_IDS] for row in rows]
        masks = [row.get(KWISE_MASK) or [row[column] for column in PAIR_MASKS] for row in rows]
        sizes = [len(of_row) for of_row in answers]
        num_completions = torch.tensor(sizes)  # (P,)
        prompt_ids, prompt_mask = self._pad([row[PROMPT_COLUMN] for row in rows], left=True)
        completion_ids, completion_mask = self._pad([ids for of_row in answers for ids in of_row])
        padded, _ = self._pad([mask for of_row in masks for mask in of_row])  # with ids, where nothing is a completion
        loss_mask = padded.bool() & completion_mask
        row_id = torch.tensor([row["row_id"] for row in rows], dtype=torch.int64)  # (P,)
        return PreferenceBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids,
            completion_mask=completion_mask,
            loss_mask=loss_mask,
            prompt_index=torch.arange(len(rows)).repeat_interleave(num_completions),
            row_id=row_id.repeat_interleave(num_completions),
            columns=_columns(rows, num_completions),
            **_pairs(rows, sizes, margin_from_scores=self.margin_from_scores),
            ref_logps=_tensor(_of_completions(rows, KWISE_REF_COLUMN, REF_COLUMNS), torch.float64),
            ref_token_logps=_token_tensor(_of_completions(rows, KWISE_TOKEN_COLUMN, TOKEN_COLUMNS), loss_mask),
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


def _columns(rows: Sequence[Row], num_completions: Tensor) -> dict[str, Tensor]:
    """The numbers of each completion, (N,), of those columns that the rows have."""
    of_rows = {
        SOURCE_COLUMN: _tensor(_given(rows, (SOURCE_COLUMN,)), torch.int64),
        "weight": _tensor(_given(rows, ("weight",))),
    }
    columns = {
        "score": _tensor(_of_completions(rows, "scores", SCORE_COLUMNS)),
        "rank": _tensor(_of_completions(rows, "ranks")),
        **{name: None if n is None else n.repeat_interleave(num_completions) for name, n in of_rows.items()},
        **_labels(rows, num_completions, of_rows["weight"]),
        "truncated": _tensor(_of_completions(rows, TRUNCATED_COLUMN)),
    }
    return {name: numbers for name, numbers in columns.items() if numbers is not None}


def _labels(rows: Sequence[Row], num_completions: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
    """What rows with labels have: `label`, and, if some completions are another row's, `mismatched` and `weight`.

    A row's completions beyond its labels are answers to another prompt (`burnish.data.mismatch`): they have weight 0.
    """
    labels = _given(rows, (LABELS_COLUMN,))
    if not labels:
        return {}
    sizes = list(zip(labels, num_completions.tolist(), strict=True))
    own = torch.tensor([place < len(of_row) for of_row, size in sizes for place in range(size)])  # (N,)
    columns = {
        "label": torch.zeros(len(own)).masked_scatter(
            own, torch.tensor([float(label) for of_row in labels for label in of_row])
        )
    }
    if bool(own.all()):
        return columns
    weights = torch.ones(len(rows)) if weight is None else weight
    return {**columns, "mismatched": ~own, "weight": weights.repeat_interleave(num_completions) * own}


def _pairs(rows: Sequence[Row], sizes: Sequence[int], *, margin_from_scores: bool) -> dict[str, Any]:
    """`pairs` (M, 2), and `weight` and `margin` (M,), each None if no row says anything of it."""
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    margins: list[float | None] = []
    has_weight, start = bool(_given(rows, ("weight",))), 0
    _given(rows, ("margin",))
    for row, size in zip(rows, sizes, strict=True):
        is_tie = bool(row.get(TIE_COLUMN))
        for better, worse in row_pairs(row):
            pairs.append((start + better, start + worse))
            weights.append((row["weight"] if has_weight else 1.0) * (0.5 if is_tie else 1.0))
            margins.append(_margin(row, better, worse, from_scores=margin_from_scores))
        start += size
    has_weight |= any(row.get(TIE_COLUMN) for row in rows)
    return {
        "pairs": torch.tensor(pairs, dtype=torch.int64).view(-1, 2),
        "weight": torch.tensor(weights, dtype=torch.float32) if has_weight else None,
        "margin": None if None in margins else torch.tensor(margins, dtype=torch.float32),
    }


def _margin(row: Row, better: int, worse: int, *, from_scores: bool) -> float | None:
    """How much better the first completion is than the second one; None if the row does not say."""
    if row.get("margin") is not None:
        return row["margin"] if better < worse else 0.0 - row["margin"]
    if not from_scores:
        return None
    scores: list[Any] = row.get("scores") or [row.get(column) for column in SCORE_COLUMNS]
    return None if None in scores else scores[better] - scores[worse]


def _tensor(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor | None:
    return torch.tensor(values, dtype=dtype) if values else None


def _token_tensor(lists: Sequence[Sequence[float]], loss_mask: Tensor) -> Tensor | None:
    """A list of numbers for each completion, (N, T), 0 where no token is trained; None if there are none."""
    if not lists:
        return None
    numbers = torch.zeros(loss_mask.shape, dtype=torch.float64)
    for index, values in enumerate(lists):
        numbers[index, : len(values)] = torch.tensor(values, dtype=torch.float64)
    return torch.where(loss_mask, numbers, 0.0)


def _of_completions(rows: Sequence[Row], list_column: str, pair_columns: Sequence[str] = ()) -> list[Any]:
    """One value for each completion: of a column of lists, else of the columns of chosen and rejected."""
    listed = _given(rows, (list_column,))
    return [value for of_row in listed for value in of_row] if listed else _given(rows, pair_columns)


def _given(rows: Sequence[Row], columns: Sequence[str]) -> list[Any]:
    """The columns row by row; empty if no row has them.

    Raises:
        DataError: some rows have them and others do not.
    """
    values = [row.get(column) for row in rows for column in columns]
    if all(value is None for value in values):
        return []
    if None in values:
        row, column = divmod(values.index(None), len(columns))
        raise DataError(
            f"row {rows[row]['row_id']} has no {columns[column]}, but other rows of its batch have. "
            "Give every row the number, or remove the column."
        )
    return values


def rollout_batch(
    prompts: Sequence[Tensor],
    completions: Sequence[Completion],
    *,
    row_ids: Sequence[int],
    pad_token_id: int,
    temperature: float = 1.0,
    mask_truncated: bool = False,
) -> RolloutBatch:
    """A round's prompts and their completions, G each in order, as one parcel whose advantages are still 0.

    Args:
        prompts: (P) token ids (l,) each.
        completions: (P x G).
        row_ids: (P) the row of the data set of each prompt.
        pad_token_id: fills the padding; no mask depends on it.
        temperature: that the completions were drawn at.
        mask_truncated: completions that were cut are not trained.
    """
    num_samples = len(completions) // len(prompts)
    prompt_ids, prompt_mask = _pad_tensors(prompts, pad_token_id, left=True)
    completion_ids, completion_mask = _pad_tensors([c.token_ids for c in completions], pad_token_id)
    loss_mask = _pad_tensors([c.loss_mask for c in completions], False)[0] & completion_mask
    truncated = torch.tensor([c.is_truncated for c in completions])
    if mask_truncated:
        loss_mask &= ~truncated[:, None]
    turns = None
    if any(c.turns is not None for c in completions):
        of_rows = [torch.zeros_like(c.token_ids) if c.turns is None else c.turns for c in completions]
        turns = _pad_tensors(of_rows, 0)[0]
    drawn = [c.logps.double() + c.kept_mass.double().log() for c in completions]
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        completion_mask=completion_mask,
        loss_mask=loss_mask,
        prompt_index=torch.arange(len(prompts)).repeat_interleave(num_samples),
        row_id=torch.tensor(row_ids).repeat_interleave(num_samples),
        columns={"truncated": truncated.float(), "sample": torch.arange(num_samples).repeat(len(prompts))},
        turn_index=turns,
        advantages=torch.zeros(len(completions), 1),
        sampler_logps=_pad_tensors(drawn, 0.0)[0].float(),
        temperature=temperature,
    )


def _pad_tensors(rows: Sequence[Tensor], fill: Any, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Values and mask (rows, longest), at least one column."""
    width = max(1, *(len(row) for row in rows))
    padded = torch.full((len(rows), width), fill, dtype=rows[0].dtype)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        padded[index, place], mask[index, place] = row, True
    return padded, mask
