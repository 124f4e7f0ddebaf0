from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from burnish.data.collate import PreferenceCollator
from burnish.trainers.logp_columns import flat_layout, place_values, scoring_order, with_logps

# Answers of 2 and 1 tokens, of 1 and none, of 3 and 2.
PAIRS = [
    {"prompt_input_ids": [5], "chosen_input_ids": [6, 7], "rejected_input_ids": [8]},
    {"prompt_input_ids": [5, 5], "chosen_input_ids": [6], "rejected_input_ids": []},
    {"prompt_input_ids": [5], "chosen_input_ids": [6, 7, 8], "rejected_input_ids": [9, 6]},
]
# Two completions of 1 and 2 tokens, three of 2, none and 1.
KWISE = [
    {"prompt_input_ids": [5], "completion_input_ids": [[6], [7, 8]]},
    {"prompt_input_ids": [5], "completion_input_ids": [[6, 7], [], [8]]},
]


def pairs() -> Dataset:
    return Dataset.from_list(PAIRS)


def numbers(count: int) -> torch.Tensor:
    """1, 2, ..., count: a value is its own place, from 1."""
    return torch.arange(1, count + 1, dtype=torch.float64)


def test_layout_of_pairs_by_hand():
    by_row, by_token = (flat_layout(pairs(), per_token=per_token) for per_token in (False, True))
    assert by_row.first.tolist() == by_token.first.tolist() == [0, 2, 4, 6]
    assert by_row.start.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert by_token.start.tolist() == [0, 2, 3, 4, 4, 7, 9]
    assert (by_row.num_values, by_token.num_values) == (6, 9)
    assert by_token.completions([2, 0]).tolist() == [4, 5, 0, 1]


def test_layout_of_several_completions_by_hand():
    by_row, by_token = (flat_layout(Dataset.from_list(KWISE), per_token=per_token) for per_token in (False, True))
    assert by_row.first.tolist() == by_token.first.tolist() == [0, 2, 5]
    assert by_row.start.tolist() == [0, 1, 2, 3, 4, 5]
    assert by_token.start.tolist() == [0, 1, 3, 5, 5, 6]


def test_the_row_of_a_place():
    """Nine token values: three of row 0, one of row 1 (whose second answer is empty), five of row 2."""
    layout = flat_layout(pairs(), per_token=True)
    assert layout.row_of(range(9)).tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2]


def test_columns_of_pairs_by_hand():
    by_row = with_logps(pairs(), numbers(6), per_token=False)
    assert (by_row["ref_chosen_logps"][:], by_row["ref_rejected_logps"][:]) == ([1, 3, 5], [2, 4, 6])
    by_token = with_logps(pairs(), numbers(9), per_token=True)
    assert by_token["ref_chosen_token_logps"][:] == [[1, 2], [4], [5, 6, 7]]
    assert by_token["ref_rejected_token_logps"][:] == [[3], [], [8, 9]]


def test_columns_of_several_completions_by_hand():
    by_row = with_logps(Dataset.from_list(KWISE), numbers(5), per_token=False)
    assert by_row["ref_completion_logps"][:] == [[1, 2], [3, 4, 5]]
    by_token = with_logps(Dataset.from_list(KWISE), numbers(6), per_token=True)
    assert by_token["ref_completion_token_logps"][:] == [[[1], [2, 3]], [[4, 5], [], [6]]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_keep_their_bits(dtype):
    values = torch.rand(6, dtype=getattr(torch, dtype)) - 5
    back = with_logps(pairs(), values, per_token=False)
    assert back.features["ref_chosen_logps"].dtype == dtype
    assert back["ref_chosen_logps"][:] == values[0::2].tolist()
    assert back["ref_rejected_logps"][:] == values[1::2].tolist()


def test_rows_chosen_by_an_index():
    """A data set that is a selection of another one's rows."""
    selected = pairs().select([2, 0])
    assert flat_layout(selected, per_token=True).start.tolist() == [0, 3, 5, 7, 8]
    by_token = with_logps(selected, numbers(8), per_token=True)
    assert by_token["ref_chosen_token_logps"][:] == [[1, 2, 3], [6, 7]]
    assert by_token["ref_rejected_token_logps"][:] == [[4, 5], [8]]
    assert by_token["chosen_input_ids"][:] == [[6, 7, 8], [6, 7]]


def test_scoring_order_by_hand():
    """Prompt plus longest answer: 2 + 3 = 5, 1 + 4 = 5, 4 + 2 = 6, 1 + 1 = 2. Longest first, equals in their order."""
    lengths = [(2, 3, 1), (1, 2, 4), (4, 2, 2), (1, 1, 1)]
    columns = ("prompt_input_ids", "chosen_input_ids", "rejected_input_ids")
    rows = [{name: [7] * n for name, n in zip(columns, row, strict=True)} for row in lengths]
    assert scoring_order(Dataset.from_list(rows)) == [2, 0, 1, 3]
    several = [{**row, "completion_input_ids": [[1], [1] * n, []]} for row, n in zip(KWISE, (2, 3), strict=True)]
    assert scoring_order(Dataset.from_list(several)) == [1, 0]


def parcel(rows: list[dict]):
    masks = [{f"{a}_loss_mask": [True] * len(row[f"{a}_input_ids"]) for a in ("chosen", "rejected")} for row in rows]
    return PreferenceCollator(0)([{"row_id": 0, **row, **mask} for row, mask in zip(rows, masks, strict=True)])


def test_places_by_hand():
    """Rows 2 and 0 as one parcel, T = 3: places 4 5 6 | 7 8 | 0 1 | 2, padding left out."""
    batch, layout = parcel([PAIRS[2], PAIRS[0]]), flat_layout(pairs(), per_token=True)
    logps = torch.tensor([[1.0, 2, 3], [4, 5, 99], [6, 7, 99], [8, 99, 99]])
    placed = place_values(batch, logps, [2, 0], layout)
    assert placed.tolist() == [[4, 1], [5, 2], [6, 3], [7, 4], [8, 5], [0, 6], [1, 7], [2, 8]]
    by_row = place_values(batch, torch.tensor([[1.0], [2], [3], [4]]), [2, 0], flat_layout(pairs(), per_token=False))
    assert by_row.tolist() == [[4, 1], [5, 2], [0, 3], [1, 4]]


def test_places_go_by_the_prompt_of_a_completion():
    """A collator that puts all chosen answers before all rejected ones: rows 2, 0, 2, 0 of the data set."""
    from dataclasses import replace

    batch = replace(parcel([PAIRS[2], PAIRS[0]]), prompt_index=torch.tensor([0, 1, 0, 1]))
    by_row = place_values(batch, torch.tensor([[1.0], [2], [3], [4]]), [2, 0], flat_layout(pairs(), per_token=False))
    assert by_row.tolist() == [[4, 1], [5, 3], [0, 2], [1, 4]]


def test_other_completions_are_refused():
    batch, layout = parcel([PAIRS[2], PAIRS[0]]), flat_layout(pairs(), per_token=False)
    with pytest.raises(ValueError, match="made 4 completions of 3 rows that have 6"):
        place_values(batch, torch.zeros(4, 1), [2, 0, 1], layout)
