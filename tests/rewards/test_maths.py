"""The mathematics reward against answers that try to trick it, in the main thread, in a thread and in a worker."""

from __future__ import annotations

import threading
import time

import pytest
from reward_rounds import make_answers

from burnish.rewards import Scorer
from burnish.rewards.maths import (
    accuracy_reward,
    cosine_scaled_reward,
    get_cosine_scaled_reward,
    math,
    reasoning_accuracy_reward,
)

pytest.importorskip("math_verify", reason="the extra `rewards` is not installed")

CASES = [
    # right answer, answer, reward
    ("42", "42", 1),
    ("42", "The answer is 42.", 1),
    ("42", "The answer is **42**.", 1),
    ("42", "#### 42", 1),
    ("so 6 * 7\n#### 42", "42", 1),
    ("42", r"\boxed{42}", 1),
    ("42", r"$\boxed{x=42}$", 1),
    ("42", r"\boxed{42\text{ cm}}", 1),
    ("42", "42 cm", 1),
    ("42", r"\boxed{6 \cdot 7}", 1),
    ("42", r"First \boxed{41}, but wait, it is \boxed{42}", 1),
    ("42", "４２", 1),
    ("42", "3 * 14 = 42", 1),
    ("42", "42\x00", 1),
    ("42", "x" * 30_000 + r" \boxed{42}", 1),
    ("1000", "1,000", 1),
    ("1,000", "1000", 1),
    ("-3", "−3", 1),
    ("0.5", "1/2", 1),
    ("50%", "0.5", 1),
    (r"\frac{1}{3}", "1/3", 1),
    (r"\frac{1}{3}", r"\boxed{\frac{2}{6}}", 1),
    (r"$\frac{1}{3}$", r"$\frac13$", 1),
    (r"\sqrt{2}", r"$\sqrt{2}$", 1),
    ("x^2+1", "$1+x^2$", 1),
    ("x^2+1", "x^{2} + 1", 1),
    ("(1,2)", r"\boxed{(1,2)}", 1),
    ("y=2x+1", "y = 2x + 1", 1),
    ("120", "5!", 1),
    ("yes", "Yes.", 1),
    ("B", "The answer is (B)", 1),
    (r"\text{Evelyn}", r"\boxed{Evelyn}", 1),
    ("42", "definitely not 42", 0),
    ("42", r"\boxed{\text{not }42}", 0),
    ("42", r"not \boxed{42}", 0),
    ("42", r"\boxed{42} is wrong", 0),
    ("42", r"$42$ is wrong", 0),
    ("42", r"\boxed{\neq 42}", 0),
    ("42", r"\boxed{x \neq 42}", 0),
    ("42", r"\boxed{<42}", 0),
    ("42", "42 or 43", 0),
    ("42", "$41$ or $42$", 0),
    ("42", r"\boxed{41}\boxed{42}", 0),
    ("42", r"\boxed{41 \text{ or } 42}", 0),
    ("42", r"\boxed{41, 42}", 0),
    ("42", r"\boxed{\{41, 42\}}", 0),
    ("42", r"\boxed{42 \pm 1}", 0),
    ("42", "41 = 42", 0),
    ("42", r"\boxed{x=41=42}", 0),
    ("42", "1 2 3 42", 0),
    ("6", "1 2 3", 0),
    ("10", "1010", 0),
    ("3", "-3", 0),
    ("1/3", "0.33", 0),
    ("0", r"\boxed{\infty}", 0),
    ("42", r"\boxed{n}", 0),
    ("42", r"\boxed{}", 0),
    ("42", "", 0),
    ("42", "forty-two", 0),
    ("42", r"\boxed{42}" + "x" * 30_000, 0),
    ("Evelyn", r"\boxed{nylevE}", 0),
    ("yes", "yes or no", 0),
    ("B", "A or B", 0),
    ("???", "42", None),
    ("", "", None),
    (None, "42", None),
]


@pytest.mark.parametrize(("right", "answer", "reward"), CASES)
def test_math(right, answer, reward):
    assert math([answer], [right]) == [reward]


def test_math_is_the_same_everywhere():
    rights, answers, rewards = (list(column) for column in zip(*CASES, strict=True))
    found: list[list] = []
    thread = threading.Thread(target=lambda: found.append(math(answers, rights)))
    thread.start()
    thread.join()
    with Scorer("math", isolation="none", timeout=None) as scorer:
        table, log = scorer.score(make_answers(answers, answer=rights), num_tokens=30_000)
    assert found[0] == rewards
    assert [None if reward != reward else reward for reward in table.rewards[:, 0].tolist()] == rewards
    assert log.events == ()


@pytest.mark.parametrize(
    "text", ["{" * 3000, r"\boxed{" * 3000, "(" * 2000 + "42" + ")" * 2000, "$" * 5000, "=" * 5000]
)
def test_math_is_quick_on_hostile_text(text):
    start = time.perf_counter()
    assert math([text], ["42"]) == [0]
    assert time.perf_counter() - start < 3


@pytest.mark.slow
def test_an_answer_that_takes_forever_is_wrong_and_counted():
    answers = make_answers(["42", r"\boxed{9^{9^{9^{9}}}}", "42", r"\boxed{(10^{10})!}"], answer=["42"] * 4)
    with Scorer("math", timeout=2) as scorer:
        start = time.perf_counter()
        table, log = scorer.score(answers, num_tokens=30)
    assert table.rewards[:, 0].tolist() == [1, 0, 1, 0]
    assert time.perf_counter() - start < 15
    overdue = [event for event in log.events if event["event"] == "reward_overdue"]
    assert len(log.events) == len(overdue)
    assert log.metrics["reward_errors/math"].total.item() == sum(event["num_answers"] for event in overdue)


# TRL's names.


def test_accuracy_reward_takes_positional_arguments():
    """The documented example of TRL 1.16."""
    completions = [[{"role": "assistant", "content": rf"My answer is \boxed{{\frac{{1}}{{{d}}}}}"}] for d in (3, 2)]
    assert accuracy_reward(completions, [r"\frac{1}{3}"] * 2, prompts=["a", "b"]) == [1, 0]


def test_reasoning_accuracy_reward_reads_what_follows_the_reasoning():
    texts = [r"<think> a </think> \boxed{\frac{1}{3}}", r"<think> a </think> \boxed{1}", r"<think> \boxed{\frac{1}{3}}"]
    assert reasoning_accuracy_reward(texts, [r"\frac{1}{3}"] * 3) == [1, 0, 0]
    ends = ["</a>", "</b>"]
    assert reasoning_accuracy_reward(["4</a>5</b>6", "4"], ["6", "4"], reasoning_delimiters=ends) == [1, 0]
    assert reasoning_accuracy_reward(["</think>4"], ["???"]) == [None]


def test_cosine_scaled_reward():
    """TRL's example: half of max_len is half way: (0.5 + 1) / 2 and -(1 + 0.5) / 2. Beyond max_len nothing changes."""
    reward = get_cosine_scaled_reward(max_len=100)
    texts, rights = [r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}"], [r"\frac{1}{3}"] * 2
    assert reward(texts, rights, [[1] * 50] * 2) == pytest.approx([0.75, -0.75])
    assert reward(texts, rights, [[1] * 0] * 2) == pytest.approx([1, -1])
    assert reward(texts, rights, [[1] * 300] * 2) == pytest.approx([0.5, -0.5])
    assert cosine_scaled_reward(["4"], ["???"], [[1]], max_len=9) == [None]
