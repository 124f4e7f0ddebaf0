from __future__ import annotations

import math

import pytest

from burnish.rewards import Scorer
from burnish.rewards.trial import try_rewards

ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n), "note": "x"} for n in range(1, 40)]


def trial_of(functions, rows=ROWS, **settings):
    return try_rewards(Scorer(functions, isolation="none", on_error="unscored"), rows, **settings)


def cells(trial, reward):
    return {row.kind: row.mean for row in trial.rows if row.reward == reward}


def test_a_sound_reward_has_no_verdict():
    trial = trial_of("number")
    assert cells(trial, "number") == {
        **{"right": 1, "right, boxed": 1, "denied": 0, "empty": 0},
        **{"echoed prompt": 0, "garbage": 0, "very long": 0},
    }
    assert trial.verdicts == ()
    assert (trial.right_column, trial.num_prompts) == ("answer", 20)


def test_faults_are_said():
    def contains(completions, answer):
        return [float(right in text) for text, right in zip(completions, answer, strict=True)]

    def short(completions):
        return [-float(len(text)) for text in completions]

    def fails(completions):
        return [1.0 / len(text) for text in completions]

    trial = trial_of(
        [contains, short, fails, lambda completions: [0.5] * len(completions), lambda answer: [None] * len(answer)]
    )
    assert "contains: scores the denied answer (1) as high as the right one (1)" in trial.verdicts
    assert any(v.startswith("short: scores the empty answer (0) as high as the right one (-") for v in trial.verdicts)
    assert any("fails: fails on the empty answer: fails raised ZeroDivisionError" in v for v in trial.verdicts)
    assert "lambda: gives 0.5 to every answer, whatever it is: there is nothing to learn" in trial.verdicts
    assert "lambda_2: scores nothing at all: it returned None for every answer" in trial.verdicts
    assert math.isnan(cells(trial, "lambda_2")["right"])


def test_messages_and_other_columns():
    rows = [{"prompt": [{"role": "user", "content": "1+1?"}], "solution": "2"}]
    trial = trial_of(lambda completions: [float(c[0]["content"] == "2") for c in completions], rows)
    assert cells(trial, "lambda")["right"] == 1
    assert (trial.right_column, trial.num_prompts) == ("solution", 1)


def test_without_right_answers_only_the_others_are_tried():
    trial = trial_of(lambda completions: [len(c) for c in completions], [{"prompt": "a"}])
    assert [row.kind for row in trial.rows] == ["empty", "echoed prompt", "garbage", "very long"]
    assert trial.right_column is None


@pytest.mark.parametrize(
    ("scorer", "rows", "message"),
    [
        (Scorer("number"), ROWS, "on_error='unscored'"),
        (Scorer("number", on_error="unscored"), [], "found no rows"),
        (Scorer("number", on_error="unscored"), [{"answer": 1}], "column 'prompt'"),
        (Scorer("number", on_error="unscored"), [{"prompt": "a"}], "needs the column 'answer'"),
    ],
)
def test_trials_that_cannot_be(scorer, rows, message):
    with pytest.raises(ValueError, match=message):
        try_rewards(scorer, rows)
