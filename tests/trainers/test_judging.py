from __future__ import annotations

import numpy as np
import pytest
import torch

from burnish.trainers.judging import Contest, Judge, JudgeError


def contests(count: int = 40) -> list[Contest]:
    return [Contest(row_id=row, prompt=f"p{row}", policy="policy's", other="other's") for row in range(count)]


def prefers_policy(prompts, first, second):
    return [answer == "policy's" for answer in first]


def test_who_wins_does_not_depend_on_the_position():
    assert Judge.of(prefers_policy).scores(contests(), seed=0) == [1.0] * 40

    def prefers_other(prompts, first, second):
        return [0.25 if answer == "policy's" else 0.75 for answer in first]

    assert Judge.of(prefers_other).scores(contests(), seed=0) == [0.25] * 40


def test_a_preference_for_a_position_cancels():
    """Always the first: the policy wins exactly where it stands first, a fair coin of (seed, row)."""
    scores = Judge.of(lambda prompts, first, second: [True] * len(prompts)).scores(contests(400), seed=0)
    assert set(scores) == {0.0, 1.0}
    assert sum(scores) / 400 == pytest.approx(0.5, abs=0.075)  # three standard errors
    again = Judge.of(lambda prompts, first, second: [True] * len(prompts)).scores(contests(400), seed=0)
    other = Judge.of(lambda prompts, first, second: [True] * len(prompts)).scores(contests(400), seed=1)
    assert scores == again
    assert scores != other


def test_positions_belong_to_rows_and_not_to_places():
    """As on two ranks: each row's coin is its own."""
    first = Judge.of(lambda prompts, first, second: [1.0] * len(prompts))
    whole = first.scores(contests(10), seed=3)
    assert first.scores(contests(10)[::2], seed=3) + first.scores(contests(10)[1::2], seed=3) == [
        *whole[::2],
        *whole[1::2],
    ]


def test_equal_answers_are_a_tie_and_are_not_asked_about():
    asked = []

    def judge(prompts, first, second):
        asked.extend(prompts)
        return [1.0 if answer == "policy's" else 0.0 for answer in first]

    mixed = [Contest(0, "same", "x", "x"), *contests(2)[1:], Contest(2, "same too", "", "")]
    assert Judge.of(judge).scores(mixed, seed=0) == [0.5, 1.0, 0.5]
    assert asked == ["p1"]
    assert Judge.of(judge).scores([], seed=0) == []


@pytest.mark.parametrize(
    "verdicts",
    [
        (1.0, 0.5, None),
        [True, 0.5, None],
        [np.float32(1.0), np.float64(0.5), None],
        [np.bool_(True), 0.5, None],
    ],
)
def test_forms_of_verdicts(verdicts):
    seed = next(s for s in range(99) if Judge.of(lambda *_: [1.0] * 3).scores(contests(3), seed=s) == [1.0] * 3)
    assert Judge.of(lambda *_: verdicts).scores(contests(3), seed=seed) == [1.0, 0.5, None]
    assert Judge.of(lambda *_: np.array([1.0, 0.5, 0.0])).scores(contests(3), seed=seed) == [1.0, 0.5, 0.0]
    assert Judge.of(lambda *_: torch.tensor([1.0, 0.5, 0.0])).scores(contests(3), seed=seed) == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("verdicts", "problem", "row"),
    [
        ([0.5, 1, 0.5], "a whole number", 1),
        ([0.5, 0.5, np.int64(0)], "a whole number", 2),
        (np.array([0, 1, 1]), "a whole number", 0),
        ([0.5, float("nan"), 0.5], "not from 0 to 1", 1),
        ([0.5, 0.5, 1.5], "not from 0 to 1", 2),
        ([0.5, "first", 0.5], "which is str", 1),
        ([0.5, 0.5], "2 verdicts on 3 prompts", 2),
        ([0.5] * 4, "4 verdicts on 3 prompts", 2),
        (0.5, "returned float, not a list", 0),
        (None, "returned NoneType, not a list", 0),
    ],
)
def test_what_is_no_verdict_is_refused_with_prompt_and_answers(verdicts, problem, row):
    with pytest.raises(JudgeError, match=problem) as error:
        Judge.of(lambda *_: verdicts).scores(contests(3), seed=0)
    message = str(error.value)
    assert f"row {row}, prompt: 'p{row}'" in message
    assert 'answer: "policy\'s"' in message
    assert 'answer: "other\'s"' in message
    assert len(message.splitlines()) <= 12


def test_a_judge_that_raises_names_the_row_it_fails_on():
    def judge(prompts, first, second):
        return [1.0 / (prompt != "p2") for prompt in prompts]

    with pytest.raises(JudgeError, match=r"judge .*judge raised ZeroDivisionError") as error:
        Judge.of(judge).scores(contests(4), seed=0)
    assert "row 2, prompt: 'p2'" in str(error.value)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_judge_may_change_its_lists():
    def judge(prompts, first, second):
        prompts.clear()
        return [True] * len(first)

    assert set(Judge.of(judge).scores(contests(6), seed=0)) <= {0.0, 1.0}


def test_long_texts_are_cut_in_messages_and_steer_no_terminal():
    long = [Contest(0, "p" * 5000 + "\x1b[2J", "a\x1b[2J", "b")]
    with pytest.raises(JudgeError) as error:
        Judge.of(lambda *_: []).scores(long, seed=0)
    assert len(str(error.value)) < 1200
    assert "\x1b" not in str(error.value)


def test_a_judge_by_name_and_a_callable_object(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judges_of_this_test.py").write_text("def always(prompts, first, second):\n    return [1.0]\n")
    assert Judge.of("judges_of_this_test:always").name == "judges_of_this_test:always"

    class Callable:
        def __call__(self, prompts, first, second):
            return [0.5] * len(prompts)

    judge = Judge.of(Callable())
    assert (judge.name, judge.scores(contests(2), seed=0)) == ("Callable", [0.5, 0.5])
    with pytest.raises(ValueError, match="judge='nothing'; a function is written module:function"):
        Judge.of("nothing")
