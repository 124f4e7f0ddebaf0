import pytest

from burnish.data.errors import RowProblem
from burnish.data.truncate import RowTokens, TruncationPolicy, truncate

PAIR = RowTokens([1, 2, 3, 4], ([10, 11, 12], [20, 21, 22, 23, 24]), ([True] * 3, [True] * 5))


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
        (RowTokens([], ([1], [2]), ([True], [True])), {}, "prompt", "no token"),
        (RowTokens([1], ([2], [3]), ([True], [False])), {}, "rejected", "no trained token"),
        (RowTokens([1], ([5, 2], [5, 3]), ([False, True],) * 2), {"max_length": 2}, "chosen", "no room"),
        (
            RowTokens([1], ([5, 2], [5, 3]), ([True, True],) * 2),
            {"max_completion_length": 1},
            "rejected",
            "once both are cut",
        ),
        (RowTokens([1], ([5, 2], [5, 2]), ([True, True],) * 2), {}, "rejected", "same tokens"),
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


def test_all_completions_share_the_cut_of_the_prompt():
    """Prompt 4, completions 3, 5, 1, 2 of 6 tokens: `keep_end` leaves 6 - 5 = 1 of the prompt, and all completions."""
    completions = ([10, 11, 12], [20, 21, 22, 23, 24], [30], [40, 41])
    row = RowTokens(
        [1, 2, 3, 4],
        completions,
        tuple([True] * len(ids) for ids in completions),
        names=("a", "b", "c", "d"),
        pairs=((1, 0),),
        num_completion_cut=(0,) * 4,
    )
    cut = truncate(row, TruncationPolicy(max_length=6, truncation_mode="keep_end"))
    assert (cut.prompt, cut.completions, cut.num_prompt_cut, cut.truncated) == ([4], completions, 3, [True] * 4)
    cut = truncate(row, TruncationPolicy(max_length=6))
    assert (cut.prompt, cut.completions) == ([1, 2, 3, 4], ([10, 11], [20, 21], [30], [40, 41]))
    assert (cut.num_completion_cut, cut.truncated) == ((1, 3, 0, 0), [True, True, False, False])
    assert (cut.lengths, cut.trained_lengths) == ((2, 2, 1, 2), (2, 2, 1, 2))


def test_only_pairs_must_differ():
    """Completions 0 and 2 become [5]; they are a pair only in the second case."""
    completions = ([5, 6], [8], [5, 7])
    masks = ([True] * 2, [True], [True] * 2)
    policy = TruncationPolicy(max_completion_length=1)
    names, uncut = ("a", "b", "c"), (0, 0, 0)
    apart = RowTokens([1], completions, masks, names=names, pairs=((0, 1), (2, 1)), num_completion_cut=uncut)
    assert truncate(apart, policy).completions == ([5], [8], [5])
    with pytest.raises(RowProblem, match="is the same as c once both are cut") as caught:
        truncate(RowTokens([1], completions, masks, names=names, pairs=((2, 0),), num_completion_cut=uncut), policy)
    assert caught.value.column == "a"
