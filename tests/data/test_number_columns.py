import math

import pytest

from burnish.data.errors import RowProblem
from burnish.data.numbers import cut_token_logps, read_numbers


def test_numbers_under_both_names():
    row = {"reference_chosen_logps": -1, "ref_rejected_logps": -2.5, "weight": 0, "margin": 3, "score": 1}
    expected = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.5, "weight": 0.0, "margin": 3.0}
    assert read_numbers(row) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen_rating", "rejected_rating"),
        ("score_chosen", "rejected_rating"),
    ],
)
def test_scores_under_all_names(chosen, rejected):
    assert read_numbers({rejected: 4, chosen: 8.5}) == {"score_chosen": 8.5, "score_rejected": 4.0}


@pytest.mark.parametrize(("given", "tie"), [(True, True), (False, False), (1, True), (0, False), (1.0, True)])
def test_ties(given, tie):
    assert read_numbers({"tie": given})["tie"] is tie


def test_token_logps_are_lists_of_floats():
    row = {"ref_chosen_token_logps": [-1, -0.5], "ref_rejected_token_logps": []}
    assert read_numbers(row) == {"ref_chosen_token_logps": [-1.0, -0.5], "ref_rejected_token_logps": []}


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        ({"weight": -1.0}, "weight", "negative"),
        ({"weight": None}, "weight", "not a number"),
        ({"margin": "1"}, "margin", "not a number"),
        ({"margin": True}, "margin", "not a number"),
        ({"margin": math.inf}, "margin", "not finite"),
        ({"margin": 10**400}, "margin", "not finite"),
        ({"ref_chosen_logps": math.nan, "ref_rejected_logps": -1.0}, "ref_chosen_logps", "not finite"),
        ({"ref_chosen_logps": -1.0}, "ref_rejected_logps", "missing although ref_chosen_logps"),
        ({"ref_rejected_logps": -1.0}, "ref_chosen_logps", "missing although ref_rejected_logps"),
        ({"score_chosen": 1.0}, "score_rejected", "missing although score_chosen"),
        ({"rejected_rating": 1.0}, "score_chosen", "missing although score_rejected"),
        ({"chosen_rating": None, "rejected_rating": 2}, "chosen_rating", "not a number"),
        ({"chosen_score": 1, "rejected_score": math.nan}, "rejected_score", "not finite"),
        ({"tie": None}, "tie", "not true or false"),
        ({"tie": 2}, "tie", "not true or false"),
        ({"tie": "true"}, "tie", "not true or false"),
        ({"tie": [True]}, "tie", "not true or false"),
        ({"ref_chosen_token_logps": [-1.0]}, "ref_rejected_token_logps", "missing although"),
        ({"ref_chosen_token_logps": -1.0}, "ref_chosen_token_logps", "is float, not a list"),
        ({"ref_chosen_token_logps": None}, "ref_chosen_token_logps", "is NoneType, not a list"),
        ({"ref_rejected_token_logps": [-1.0, None]}, "ref_rejected_token_logps", "item 1 is not a number"),
        ({"ref_rejected_token_logps": [math.inf]}, "ref_rejected_token_logps", "item 0 is not finite"),
    ],
)
def test_bad_numbers_are_named(row, column, problem):
    with pytest.raises(RowProblem) as caught:
        read_numbers(row)
    assert caught.value.column == column
    assert problem in caught.value.problem
    assert caught.value.fix.endswith(".")


def test_token_logps_of_token_ids_are_cut_with_the_answers():
    """Three and two given tokens, of which two and two are kept."""
    cut = cut_token_logps("ab", [[-1, -2, -3], [-4, -5]], given=[3, 2], kept=[2, 2], is_tokenized=True)
    assert cut == [[-1, -2], [-4, -5]]


@pytest.mark.parametrize(
    ("lengths", "is_tokenized", "name", "problem"),
    [
        ([2, 2], True, "a", "has 2 log-probs for an answer of 3 tokens"),
        ([3, 1], True, "b", "has 1 log-probs for an answer of 2 tokens"),
        ([3, 2], False, "a", "has 3 log-probs for an answer of 2 tokens (3 before truncation)"),
    ],
)
def test_token_logps_must_match_the_answers(lengths, is_tokenized, name, problem):
    """As token ids they are those of the given tokens (3, 2), else of those that are kept (2, 2)."""
    with pytest.raises(RowProblem) as caught:
        cut_token_logps("ab", [[-1.0] * n for n in lengths], given=[3, 2], kept=[2, 2], is_tokenized=is_tokenized)
    assert caught.value.column == name
    assert problem in caught.value.problem
