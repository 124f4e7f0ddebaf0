from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from reward_rounds import make_answers

from burnish.rewards import RewardError, Scorer
from burnish.rewards.builtin import get_soft_overlong_punishment, number, think_format_reward


def score(function, answers=None, *, num_tokens=8, trainer_state=None, **settings):
    return Scorer(function, **settings).score(
        make_answers() if answers is None else answers, num_tokens=num_tokens, trainer_state=trainer_state
    )


def column(table, name=None):
    return table.rewards[:, table.names.index(name) if name else 0].tolist()


def scalar(mean):
    return (mean.total / mean.weight).item()


# What functions are called with.


def test_a_function_with_kwargs_gets_everything():
    seen = {}

    def function(prompts, **kwargs):
        seen.update(kwargs, prompts=prompts)
        return [0.0] * len(prompts)

    score(function, make_answers(answer=list("abcd"), image=[1, 2, 3, 4]), trainer_state="state")
    assert set(seen) == {
        *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
        *("answer", "image"),
    }
    assert seen["prompts"] == ["Question 0", "Question 0", "Question 1", "Question 1"]
    assert seen["completions"] == ["4", "5", "", "6 or 7"]
    assert seen["completion_ids"][3] == list(b"6 or 7")
    assert (seen["answer"], seen["trainer_state"]) == (["a", "b", "c", "d"], "state")


def test_others_get_what_they_name():
    table, _ = score([lambda completions: [len(c) for c in completions], lambda answer, depth=2: [depth] * len(answer)])
    assert table.names == ("lambda", "lambda_2")
    assert table.rewards.tolist() == [[1, 2], [1, 2], [0, 2], [6, 2]]


def test_a_function_may_change_its_arguments():
    def vandal(prompts, completions, completion_ids, answer):
        completions[0][0]["content"] = "changed"
        prompts.clear()
        completion_ids[0].append(1)
        answer[0] = "changed"
        return [0] * 4

    answers = make_answers(conversational=True)
    score(vandal, answers)
    assert answers.completions[0][0]["content"] == "4"
    assert answers.completion_ids[0] == [52]
    assert answers.columns["answer"][0] == "4"


class Judge:
    def __call__(self, completions):
        return [1.0] * len(completions)


async def asynchronous(completions):
    await asyncio.sleep(0.01)
    return [float(len(c)) for c in completions]


def test_kinds_of_callables_and_their_names():
    bound = partial(lambda completions, bonus: [bonus] * len(completions), bonus=3)
    functions = [Judge(), bound, asynchronous, number, get_soft_overlong_punishment(4, 2), think_format_reward]
    table, _ = score(functions, isolation="none")
    assert table.names == (
        *("Judge", "lambda", "asynchronous", "number"),
        *("soft_overlong_punishment_reward", "think_format_reward"),
    )
    assert table.rewards[3].tolist() == [1, 3, 6, 0, -1, 0]


def test_coroutines_run_at_the_same_time():
    together = asyncio.Event()

    async def first(completions):
        await asyncio.wait_for(together.wait(), 5)
        return [0] * len(completions)

    async def second(completions):
        together.set()
        return [1] * len(completions)

    assert score([first, second])[0].rewards[0].tolist() == [0, 1]


# The table.


def test_weights_and_none():
    table, log = score([lambda answer: [None, 1, None, 2], "exact_match"], weights=[0.5, 2])
    assert table.weights.tolist() == [0.5, 2]
    assert table.total().tolist() == [2, 0.5, 0, 1]
    assert table.rewards.isnan().tolist() == [[True, False], [False, False], [True, False], [False, False]]
    assert scalar(log.metrics["reward_unscored/lambda"]) == 0.5
    assert scalar(log.metrics["reward_errors/lambda"]) == 0
    assert log.events == ()


def test_rewards_of_turns_and_spans_are_weighted_and_placed():
    """Two functions with weights 2 and 10 meet on the last token of the first answer: 2 * 0.5 + 10 * 1 = 11."""
    answers = make_answers(["abcd", "ab"], turns=[[0, 0, 1, 1], [0, 0]])
    turns = lambda completions: [[1.0, 0.5], [3.0]]  # noqa: E731
    spans = lambda completions: [[(0, 4, 1.0)], [(0, 1, 1.0), (1, 2, -1.0)]]  # noqa: E731
    plain = lambda completions: [5.0, 5.0]  # noqa: E731
    table, _ = score([turns, spans, plain], answers, weights=[2, 10, 1], num_tokens=5)
    assert table.rewards.tolist() == [[1.5, 1, 5], [3, 0, 5]]
    assert table.token_rewards.tolist() == [[0, 2, 0, 11, 0], [10, -4, 0, 0, 0]]


def test_without_turns_there_are_no_token_rewards():
    assert score("number")[0].token_rewards is None


def test_no_answers():
    """As on a process that has none of an evaluation's last prompts: a function of the user's is not asked."""

    def mean_of_none(completions, **_):
        return [sum(map(len, completions)) / len(completions)] * len(completions)

    table, log = score(mean_of_none, make_answers([]))
    assert table.rewards.shape == (0, 1)
    assert log.events == ()


# What functions log.


def test_columns_and_metrics_of_functions():
    def function(completions, log_extra, log_metric):
        log_extra("length", [len(c) for c in completions])
        log_metric("rate", 1)
        log_metric("rate", 2)
        return [0] * len(completions)

    _, log = score([function, function])
    assert log.columns == {"length": [1, 1, 0, 6], "function_2/length": [1, 1, 0, 6]}
    assert scalar(log.metrics["rate"]) == 1.5


def test_what_is_logged_of_each_function():
    _, log = score("number")
    assert set(log.metrics) == {f"reward_{kind}/number" for kind in ("seconds", "unscored", "errors", "retries")}
    assert all(mean.weight.item() in (1, 4) for mean in log.metrics.values())


@pytest.mark.parametrize("name", ["loss", "pass@2", "rewards/function/mean", "reward_seconds/function"])
def test_names_of_our_own_metrics_are_refused(name):
    def function(completions, log_metric):
        log_metric(name, 1)
        return [0] * len(completions)

    with pytest.raises(ValueError, match=rf"log_metric\('{name}', ...\), which Burnish logs"):
        score(function)


def test_a_name_that_only_evaluations_log_is_free_in_training():
    """TRL's own example logs `accuracy`; here evaluations log `eval_accuracy`."""

    def function(completions, log_metric):
        log_metric("accuracy", 0.25)
        return [0] * len(completions)

    _, log = score(function)
    assert scalar(log.metrics["accuracy"]) == 0.25


def test_log_extra_needs_a_value_for_each_answer():
    def function(completions, log_extra):
        log_extra("length", [1])
        return [0] * len(completions)

    with pytest.raises(RewardError, match=r"calls log_extra\('length', ...\), which takes a list"):
        score(function)


# Bad input, before anything is generated.


@pytest.mark.parametrize(
    ("functions", "settings", "message"),
    [
        ([], {}, "is empty"),
        ("number1", {}, "did you mean 'number'"),
        ([3], {}, "a function or a model; 3 is int"),
        ([Judge], {}, "a function or a model"),
        ([lambda c, /: [0]], {}, "positional-only parameter 'c'"),
        ("number", {"weights": [1, 2]}, "has 2 numbers for the 1 rewards"),
        ("number", {"weights": [math.nan]}, "finite"),
        ("number", {"options": {"number1": {}}}, r"reward_options has \['number1'\]"),
        ("number", {"options": {"number": {"answer1": "x"}}}, "did you mean 'answer'"),
        ("number", {"options": {"number": {"answer": 3}}}, "named by a text; found 3"),
        ("overlong", {}, r"needs \['max_completion_len', 'soft_punish_cache'\]"),
        ("number", {"isolation": "yes"}, "auto, process, none"),
        ("number", {"timeout": 0}, "above 0"),
        ("number", {"retries": -1}, "0 or more"),
        ("number", {"on_error": "zero"}, "raise, unscored"),
    ],
)
def test_settings_that_are_wrong(functions, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Scorer(functions, **settings)


def test_columns_that_are_missing():
    scorer = Scorer(["number", lambda completions, unit="m": [0], "overlong"], options={"overlong": OVERLONG})
    scorer.check_columns(["answer"])
    with pytest.raises(ValueError, match=r"'number' needs the column 'answer', and the data set has \['solution'\]"):
        scorer.check_columns(["solution"])
    renamed = Scorer("number", options={"number": {"answer": "solution"}})
    renamed.check_columns(["solution"])
    with pytest.raises(ValueError, match="needs the column 'solution'"):
        renamed.check_columns(["answer"])


@pytest.mark.parametrize("name", ["prompts", "completions", "completion_ids", "trainer_state", "log_extra"])
def test_columns_with_names_that_are_taken(name):
    with pytest.raises(ValueError, match=f"has the column '{name}'.*rename it"):
        Scorer("exact_match").check_columns(["answer", name])


OVERLONG = {"max_completion_len": 4, "soft_punish_cache": 2}


def test_options():
    table, _ = score(
        ["number", "overlong"],
        make_answers(answer=["9"] * 4, solution=["4", "4", "4", "4"]),
        options={"number": {"answer": "solution"}, "overlong": OVERLONG},
    )
    assert table.rewards.tolist() == [[1, 0], [0, 0], [0, 0], [0, -1]]


# Twelve kinds of entries under both policies.

GOOD = [1, 0.5, True, None, np.float64(0.5), torch.tensor(0.5)]
BAD = [math.nan, math.inf, -math.inf, 1e39, "0.5", [1.0, 2.0], (x for x in (1,))]


@pytest.mark.parametrize(("entry", "on_error"), [*itertools.product(GOOD, ["raise", "unscored"])])
def test_good_entries(entry, on_error):
    table, log = score(lambda completions: [0.25, entry, 0.25, 0.25], on_error=on_error)
    assert column(table)[1] == (float(entry) if entry is not None else pytest.approx(math.nan, nan_ok=True))
    assert log.events == ()


@pytest.mark.parametrize("entry", BAD)
def test_bad_entries_raise(entry):
    with pytest.raises(RewardError) as raised:
        score(lambda completions: [0.25, 0.25, 0.25, entry])
    text = str(raised.value)
    assert "the reward 'lambda' returned " in text
    assert "row 101" in text
    assert "prompt: 'Question 1'" in text
    assert "answer: '6 or 7'" in text
    assert len(text.splitlines()) <= 12


@pytest.mark.parametrize("entry", BAD)
def test_bad_entries_are_unscored(entry):
    table, log = score(lambda completions: [0.25, 0.25, 0.25, entry], on_error="unscored")
    assert column(table)[:3] == [0.25] * 3
    assert math.isnan(column(table)[3])
    assert scalar(log.metrics["reward_errors/lambda"]) == 0.25
    assert scalar(log.metrics["reward_unscored/lambda"]) == 0
    (event,) = log.events
    assert (event["event"], event["reward"], event["kind"], event["rows"]) == (
        "reward_failed",
        "lambda",
        "result",
        [101],
    )


@pytest.mark.parametrize("result", [None, 1.0, "abcd", [1.0], [1] * 5, {}, np.ones((4, 1)), iter([1, 2, 3, 4])])
def test_results_of_the_wrong_form(result):
    with pytest.raises(RewardError, match=r"the reward 'lambda' returned .*\n.*a batch of 4 answers, rows 100, 101"):
        score(lambda completions: result)
    table, log = score(lambda completions: result, on_error="unscored")
    assert table.rewards.isnan().all()
    assert scalar(log.metrics["reward_errors/lambda"]) == 1
    assert log.events[0]["num_answers"] == 4


# Exceptions.


def picky(completions):
    return [1.0 if text else {}["answer"] for text in completions]


def test_an_exception_names_its_answer():
    with pytest.raises(RewardError, match=r"raised KeyError: 'answer' \(.*test_score.py:\d+ in .*\)") as raised:
        score(picky, isolation="none")
    assert "row 101" in str(raised.value)
    assert "answer: ''" in str(raised.value)
    assert isinstance(raised.value.__cause__, KeyError)


def test_an_exception_costs_no_other_answer():
    table, log = score(picky, isolation="none", on_error="unscored")
    assert column(table)[:2] + column(table)[3:] == [1, 1, 1]
    assert math.isnan(column(table)[2])
    assert scalar(log.metrics["reward_errors/picky"]) == 0.25
    (event,) = log.events
    assert (event["rows"], event["num_answers"], event["answer"]) == ([101], 1, "''")
    assert "KeyError" in event["details"]


def test_sys_exit_is_an_exception_of_the_function():
    with pytest.raises(RewardError, match="raised SystemExit: 3"):
        score(lambda completions: exit(3))


def test_retries_are_counted(monkeypatch):
    monkeypatch.setattr("burnish.rewards.attempts.PAUSE", 0.0)
    calls = []

    def flaky(completions):
        calls.append(1)
        return [1] * len(completions) if len(calls) > 2 else 1 / 0

    table, log = score(flaky, retries=2)
    assert column(table) == [1] * 4
    assert scalar(log.metrics["reward_retries/flaky"]) == 2
    assert [(event["event"], event["num_answers"]) for event in log.events] == [("reward_recovered", 8)]


def test_a_batch_whose_parts_pass_is_recovered():
    table, log = score(lambda completions: [1 / (len(completions) < 4)] * len(completions))
    assert column(table) == [1] * 4
    assert [event["event"] for event in log.events] == ["reward_recovered"]


# Hangs in this process.


def test_a_hang_is_named_with_its_line():
    release = threading.Event()
    with pytest.raises(RewardError, match=r"'lambda' has not come back after 0.05 s \(.*\); .*cannot be\s+stopped"):
        score(lambda completions: release.wait(10), timeout=0.05)
    release.set()


def test_a_function_that_hangs_is_not_called_again_until_it_is_back():
    release, calls = threading.Event(), []

    def hangs(completions):
        calls.append(1)
        release.wait(10)
        return [1] * len(completions)

    scorer = Scorer([hangs, "number"], timeout=0.05, on_error="unscored")
    for _ in range(2):
        table, log = scorer.score(make_answers(), num_tokens=8)
        assert table.rewards[:, 0].isnan().all()
        assert table.rewards[:, 1].tolist() == [1, 0, 0, 0]
    assert "is still busy with an earlier call" in log.events[0]["problem"]
    assert len(calls) == 1
    release.set()
    time.sleep(0.1)
    assert column(scorer.score(make_answers(), num_tokens=8)[0]) == [1] * 4


def test_a_coroutine_that_hangs_is_cancelled():
    cancelled = threading.Event()

    async def hangs(completions):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(RewardError, match=r"has not finished after 0.05 s, and was cancelled"):
        score(hangs, make_answers(["4"]), timeout=0.05)
    assert cancelled.wait(2)
    assert column(score(asynchronous, isolation="none")[0]) == [1, 1, 0, 6]


def test_a_coroutine_that_blocks_leaves_the_others_alone():
    async def blocks(completions):
        time.sleep(1)
        return [0] * len(completions)

    score(blocks, make_answers(["4"]), timeout=0.05, on_error="unscored")
    assert column(score(asynchronous, isolation="none", timeout=0.5)[0]) == [1, 1, 0, 6]


def test_without_a_limit_functions_run_in_the_main_thread():
    threads = []

    def function(completions):
        threads.append(threading.current_thread())
        return [0] * len(completions)

    score(function, timeout=None)
    score(function, timeout=5)
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


def test_functions_run_without_gradients():
    weight = torch.ones((), requires_grad=True)
    table, _ = score(lambda completions: weight * torch.ones(len(completions)))
    assert not table.rewards.requires_grad
