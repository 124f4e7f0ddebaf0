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


def graded(row_id, completions, **numbers):
    masks = [[True] * len(ids) for ids in completions]
    ids = {"prompt_input_ids": [5], "completion_input_ids": completions, "completion_loss_mask": masks}
    return {"row_id": row_id, **ids, **numbers}


def test_a_tie_is_two_pairs_of_half_the_weight():
    """Rows of weight 3 and 2, the second a tie: pairs of weight 3, 1 and 1. Its margin 0.5 is -0.5 the other way."""
    rows = [
        {**ROWS[0], "tie": False, "weight": 3.0, "margin": 2.0},
        {**ROWS[1], "tie": True, "weight": 2.0, "margin": 0.5},
    ]
    batch = PreferenceCollator(0)(rows)
    assert batch.pairs.tolist() == [[0, 1], [2, 3], [3, 2]]
    assert batch.weight.tolist() == [3.0, 1.0, 1.0]
    assert batch.margin.tolist() == [2.0, 0.5, -0.5]
    assert float(batch.counts()["pair"]) == 5.0
    without = PreferenceCollator(0)([{**row, "weight": None, "margin": None} for row in rows])
    assert (without.weight.tolist(), without.margin) == ([1.0, 0.5, 0.5], None)


def test_scores_are_a_column_and_the_margin_of_rows_without_one():
    rows = [{**row, "score_chosen": 4.0 + i, "score_rejected": 6.0 * i} for i, row in enumerate(ROWS)]
    batch = PreferenceCollator(0)(rows)
    assert batch.columns["score"].tolist() == [4.0, 0.0, 5.0, 6.0]
    assert batch.margin.tolist() == [4.0, -1.0]
    assert PreferenceCollator(0)([{**row, "margin": 7.0} for row in rows]).margin.tolist() == [7.0, 7.0]
    without = PreferenceCollator(0, margin_from_scores=False)
    assert without(rows).margin is None
    assert without([{**row, "margin": 7.0} for row in rows]).margin.tolist() == [7.0, 7.0]


def test_columns_of_rows_and_of_answers():
    rows = [{**row, "source": 3 - i, "truncated": [i == 1, False]} for i, row in enumerate(ROWS)]
    batch = PreferenceCollator(0)(rows)
    assert batch.columns["source"].tolist() == [3, 3, 2, 2]
    assert batch.columns["source"].dtype == torch.int64
    assert batch.columns["truncated"].tolist() == [0.0, 0.0, 1.0, 0.0]
    weighted = PreferenceCollator(0)([{**row, "weight": 1.0 + i} for i, row in enumerate(ROWS)])
    assert weighted.columns["weight"].tolist() == weighted.unit_weights("row").tolist() == [1.0, 1.0, 2.0, 2.0]
    assert PreferenceCollator(0)(ROWS).columns == {}


def test_token_logps_are_padded_and_zero_where_nothing_is_trained():
    """The first token of row 3's chosen answer is not trained, so its -5 counts for nothing."""
    numbers = [([-1.0, -2.0], [-3.0]), ([-5.0, -6.0, -7.0], [-8.0, -9.0])]
    rows = [
        {**row, "ref_chosen_token_logps": chosen, "ref_rejected_token_logps": rejected}
        for row, (chosen, rejected) in zip(ROWS, numbers, strict=True)
    ]
    batch = PreferenceCollator(0, pad_to_multiple_of=4)(rows)
    assert batch.ref_token_logps.tolist() == [
        [-1.0, -2.0, 0.0, 0.0],
        [-3.0, 0.0, 0.0, 0.0],
        [0.0, -6.0, -7.0, 0.0],
        [-8.0, -9.0, 0.0, 0.0],
    ]


def test_graded_completions_are_all_pairs_of_different_grade():
    """Scores 1, 3, 1 and weight 2; scores 0 and 2 and weight 1: completions 3 and 4 belong to the second prompt."""
    rows = [
        graded(8, [[7], [8, 2], [9]], scores=[1.0, 3.0, 1.0], weight=2.0, truncated=[False, True, False]),
        graded(9, [[6], [4]], scores=[0.0, 2.0], weight=1.0, truncated=[True, True]),
    ]
    batch = PreferenceCollator(0)(rows)
    assert batch.completion_ids.tolist() == [[7, 0], [8, 2], [9, 0], [6, 0], [4, 0]]
    assert batch.loss_mask.sum(1).tolist() == [1, 2, 1, 1, 1]
    assert batch.prompt_ids.tolist() == [[5], [5]]
    assert batch.prompt_index.tolist() == [0, 0, 0, 1, 1]
    assert batch.row_id.tolist() == [8, 8, 8, 9, 9]
    assert batch.pairs.tolist() == [[1, 0], [1, 2], [4, 3]]
    assert batch.weight.tolist() == [2.0, 2.0, 1.0]
    assert batch.margin.tolist() == [2.0, 2.0, 2.0]
    assert batch.columns["score"].tolist() == [1.0, 3.0, 1.0, 0.0, 2.0]
    assert batch.columns["truncated"].tolist() == [0.0, 1.0, 0.0, 1.0, 1.0]


def test_ranks_have_no_margin():
    batch = PreferenceCollator(0)([graded(0, [[7], [8], [9]], ranks=[3, 1, 2], source=1)])
    assert batch.pairs.tolist() == [[1, 0], [1, 2], [2, 0]]
    assert (batch.margin, batch.weight) == (None, None)
    assert {name: numbers.tolist() for name, numbers in batch.columns.items()} == {
        "rank": [3.0, 1.0, 2.0],
        "source": [1, 1, 1],
    }


def test_reference_of_graded_completions():
    row = graded(0, [[7], [8, 2]], scores=[1.0, 0.0])
    batch = PreferenceCollator(0)(
        [{**row, "ref_completion_logps": [-1.0, -5.0], "ref_completion_token_logps": [[-1.0], [-2.0, -3.0]]}]
    )
    assert batch.ref_logps.tolist() == [-1.0, -5.0]
    assert batch.ref_token_logps.tolist() == [[-1.0, 0.0], [-2.0, -3.0]]


@pytest.mark.parametrize(
    ("first", "second", "column"),
    [
        ({"margin": 1.0}, {}, "margin"),
        ({"margin": 1.0}, {"margin": None}, "margin"),
        ({"score_chosen": 1.0, "score_rejected": 0.0}, {"score_chosen": 1.0}, "score_rejected"),
        ({"source": 1}, {}, "source"),
        ({"truncated": [True, False]}, {}, "truncated"),
        ({"ref_chosen_token_logps": [1.0], "ref_rejected_token_logps": [1.0]}, {}, "ref_chosen_token_logps"),
    ],
)
def test_a_column_in_some_rows_only_names_the_row(first, second, column):
    with pytest.raises(ValueError, match=rf"row 3 has no {column}"):
        PreferenceCollator(0)([{**ROWS[0], **first}, {**ROWS[1], **second}])


@pytest.mark.parametrize("pad", [None, -1, "a"])
def test_pad_token_id_is_checked(pad):
    with pytest.raises(ValueError, match="pad_token_id"):
        PreferenceCollator(pad)
