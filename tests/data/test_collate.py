import pytest
import torch

from burnish.data.collate import PreferenceCollator

ROWS = [
    {
        "row_id": 17,
        "prompt_input_ids": [5, 6],
        "chosen_input_ids": [7, 2],
        "chosen_loss_mask": [True, True],
        "rejected_input_ids": [8],
        "rejected_loss_mask": [True],
    },
    {
        "row_id": 3,
        "prompt_input_ids": [5],
        "chosen_input_ids": [2, 9, 9],
        "chosen_loss_mask": [False, True, True],
        "rejected_input_ids": [4, 4],
        "rejected_loss_mask": [True, True],
    },
]


def test_layout_with_pad_equal_to_eos():
    batch = PreferenceCollator(2)(ROWS)
    assert batch.prompt_ids.tolist() == [[5, 6], [2, 5]]
    assert batch.prompt_mask.tolist() == [[True, True], [False, True]]
    assert batch.completion_ids.tolist() == [[7, 2, 2], [8, 2, 2], [2, 9, 9], [4, 4, 2]]
    assert batch.completion_mask.sum(1).tolist() == [2, 1, 3, 2]
    assert batch.loss_mask.tolist() == [
        [True, True, False],
        [True, False, False],
        [False, True, True],
        [True, True, False],
    ]
    assert batch.prompt_index.tolist() == [0, 0, 1, 1]
    assert batch.row_id.tolist() == [17, 17, 3, 3]
    assert batch.pairs.tolist() == [[0, 1], [2, 3]]
    assert (batch.ref_logps, batch.weight, batch.margin, batch.is_filler) == (None, None, None, False)
    assert batch.prompt_ids.dtype == batch.completion_ids.dtype == torch.int64
    assert batch.loss_mask.dtype == torch.bool


def test_padding_to_a_multiple_changes_no_token():
    batch = PreferenceCollator(0, pad_to_multiple_of=4)(ROWS)
    assert batch.prompt_ids.shape == (2, 4)
    assert batch.completion_ids.shape == (4, 4)
    assert batch.prompt_ids[0].tolist() == [0, 0, 5, 6]
    assert batch.completion_mask.sum(1).tolist() == [2, 1, 3, 2]


def test_numbers_are_interleaved():
    rows = [
        {**row, "ref_chosen_logps": -1.0 - i, "ref_rejected_logps": -9.0 - i, "weight": 2.0, "margin": float(i)}
        for i, row in enumerate(ROWS)
    ]
    batch = PreferenceCollator(0)(rows)
    assert batch.ref_logps.tolist() == [-1.0, -9.0, -2.0, -10.0]
    assert batch.weight.tolist() == [2.0, 2.0]
    assert batch.margin.tolist() == [0.0, 1.0]
    assert batch.margin.dtype == torch.float32


def test_a_number_in_some_rows_only_names_the_row():
    with pytest.raises(ValueError, match=r"row 3 has no weight"):
        PreferenceCollator(0)([{**ROWS[0], "weight": 1.0}, ROWS[1]])


def test_filler():
    batch = PreferenceCollator(0)([{**ROWS[0], "is_filler": True}])
    assert batch.is_filler
    assert all(float(count) == 0.0 for count in batch.counts().values())


@pytest.mark.parametrize("pad", [None, -1, "a"])
def test_pad_token_id_is_checked(pad):
    with pytest.raises(ValueError, match="pad_token_id"):
        PreferenceCollator(pad)
