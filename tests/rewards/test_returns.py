"""Every kind of thing that a function may return."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from burnish.rewards.returns import AnswerShape, ResultError, read_result

ONE = AnswerShape.of(5, None)
TWO = AnswerShape.of(5, [0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (True, 1.0),
        (Fraction(1, 4), 0.25),
        (np.float16(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.bool_(True), 1.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(True), 1.0),
        (-1e38, -1e38),
    ],
)
def test_numbers(entry, value):
    (score,) = read_result([entry], [ONE])
    assert (score.value, score.tokens, score.problem) == (value, (), None)
    assert type(score.value) is float


@pytest.mark.parametrize("entry", [math.nan, math.inf, -math.inf, 1e39, np.float64("nan"), torch.tensor(torch.inf)])
def test_numbers_that_are_not_finite(entry):
    (score,) = read_result([entry], [ONE])
    assert math.isnan(score.value)
    assert "not finite" in score.problem


@pytest.mark.parametrize(
    "entry",
    ["0.5", b"1", 1j, {}, {"score": 1}, object(), iter([1]), [[1.0]], [["a", 1, 2]], ["1"], (1, 2), [[0, 9, 1]]],
)
def test_entries_that_are_no_score(entry):
    good, bad = read_result([0.25, entry], [ONE, ONE])
    assert good.value == 0.25
    assert math.isnan(bad.value)
    assert bad.problem.startswith("returned ")


def test_a_string_is_told_how_to_be_a_number():
    assert "return float('0.5')" in read_result(["0.5"], [ONE])[0].problem


def test_none_is_not_scored_and_no_problem():
    (score,) = read_result([None], [ONE])
    assert math.isnan(score.value)
    assert score.problem is None


@pytest.mark.parametrize(
    "result", [None, 1.0, "12", {0: 1, 1: 2}, {1.0, 2.0}, (x for x in (1, 2)), [1.0], [1, 2, 3], [], np.ones((2, 1))]
)
def test_results_of_the_wrong_form(result):
    with pytest.raises(ResultError, match=r"returned .*list of 2 numbers"):
        read_result(result, [ONE, ONE])


@pytest.mark.parametrize("result", [(1, 2), np.array([1, 2]), torch.tensor([1.0, 2.0]), torch.tensor([1, 2]).half()])
def test_results_of_the_right_form(result):
    assert [score.value for score in read_result(result, [ONE, ONE])] == [1.0, 2.0]


def test_rewards_of_turns_belong_to_their_last_tokens():
    (score,) = read_result([[0.5, -1.0]], [TWO])
    assert (score.value, score.tokens) == (-0.5, ((2, 0.5), (4, -1.0)))


def test_a_turn_may_be_unscored():
    some, none, array = read_result([[None, 2.0], [None, None], torch.tensor([1.0, 2.0])], [TWO] * 3)
    assert (some.value, some.tokens) == (2.0, ((4, 2.0),))
    assert math.isnan(none.value)
    assert none.problem is None
    assert array.value == 3.0


def test_rewards_of_spans_belong_to_their_last_tokens():
    (score,) = read_result([[(0, 2, 0.5), (1, 5, 1.0), [4, 5, 0.25]]], [ONE])
    assert (score.value, score.tokens) == (1.75, ((1, 0.5), (4, 1.0), (4, 0.25)))


@pytest.mark.parametrize("span", [(0, 0, 1), (2, 1, 1), (-1, 2, 1), (0, 6, 1), (0.0, 1, 1), (True, 2, 1), (0, 1)])
def test_spans_that_are_none(span):
    (score,) = read_result([[span]], [ONE])
    assert "span" in score.problem


def test_an_empty_answer_has_a_turn_without_a_token():
    (score,) = read_result([[1.0]], [AnswerShape.of(0, None)])
    assert (score.value, score.tokens) == (1.0, ())


def test_sums_that_are_not_finite_are_a_problem():
    (score,) = read_result([[3e38, 3e38]], [TWO])
    assert "not finite" in score.problem
