import pytest

from burnish.data.errors import RowProblem
from burnish.data.truncate import PairTokens, TruncationPolicy, truncate

PAIR = PairTokens([1, 2, 3, 4], ([10, 11, 12], [20, 21, 22, 23, 24]), ([True] * 3, [True] * 5))


@pytest.mark.parametrize(
    ("policy", "prompt", "chosen", "rejected", "cuts"),
    [
        ({}, [1, 2, 3, 4], [10, 11, 12], [20, 21, 22, 23, 24], (0, (0, 0))),
        ({"max_length": 9}, [1, 2, 3, 4], [10, 11, 12], [20, 21, 22, 23, 24], (0, (0, 0))),
        ({"max_length": 6}, [1, 2, 3, 4], [10, 11], [20, 21], (0, (1, 3))),
        ({"max_length": 6, "truncation_mode": "keep_end"}, [4], [10, 11, 12], [20, 21, 22, 23, 24], (3, (0, 0))),
        ({"max_length": 8, "truncation_mode": "keep_end"}, [2, 3, 4], [10, 11, 12], [20, 21, 22, 23, 24], (1, (0, 0))),
        ({"max_length": 3, "truncation_mode": "keep_end"}, [4], [10, 11], [20, 21], (3, (1, 3))),
        ({"max_prompt_length": 2}, [3, 4], [10, 11, 12], [20, 21, 22, 23, 24], (2, (0, 0))),
        ({"max_completion_length": 4}, [1, 2, 3, 4], [10, 11, 12], [20, 21, 22, 23], (0, (0, 1))),
        (
            {"max_length": 5, "max_prompt_length": 3, "max_completion_length": 4},
            [2, 3, 4],
            [10, 11],
            [20, 21],
            (1, (1, 3)),
        ),
    ],
)
def test_cases_worked_out_by_hand(policy, prompt, chosen, rejected, cuts):
    cut = truncate(PAIR, TruncationPolicy(**policy))
    assert cut.prompt == prompt
    assert cut.completions == (chosen, rejected)
    assert cut.masks == ([True] * len(chosen), [True] * len(rejected))
    assert (cut.num_prompt_cut, cut.num_completion_cut) == cuts


@pytest.mark.parametrize(
    ("pair", "policy", "column", "words"),
    [
        (PAIR, {"max_length": 4}, "chosen", "no room"),
        (PairTokens([], ([1], [2]), ([True], [True])), {}, "prompt", "no token"),
        (PairTokens([1], ([2], [3]), ([True], [False])), {}, "rejected", "no trained token"),
        (PairTokens([1], ([5, 2], [5, 3]), ([False, True],) * 2), {"max_length": 2}, "chosen", "no room"),
        (
            PairTokens([1], ([5, 2], [5, 3]), ([True, True],) * 2),
            {"max_completion_length": 1},
            "rejected",
            "once both are cut",
        ),
        (PairTokens([1], ([5, 2], [5, 2]), ([True, True],) * 2), {}, "rejected", "same tokens"),
    ],
)
def test_rows_that_cannot_be_trained(pair, policy, column, words):
    with pytest.raises(RowProblem) as caught:
        truncate(pair, TruncationPolicy(**policy))
    assert caught.value.column == column
    assert words in caught.value.problem


@pytest.mark.parametrize(
    "policy",
    [
        {"max_length": 1},
        {"max_length": 2.0},
        {"max_prompt_length": 0},
        {"max_completion_length": True},
        {"truncation_mode": "keep_all"},
    ],
)
def test_policy_refuses_values(policy):
    with pytest.raises(ValueError, match=next(iter(policy))):
        TruncationPolicy(**policy)
