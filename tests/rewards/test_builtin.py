from __future__ import annotations

import time

import pytest

from burnish.rewards import builtin


@pytest.mark.parametrize(
    ("answer", "right", "reward"),
    [
        ("42", "42", 1),
        ("The answer is 42.", "42", 1),
        ("3 + 4 = 7", "7", 1),
        ("7.0", "7", 1),
        ("7.", "7", 1),
        ("7.50", "7.5", 1),
        ("7.5", "7", 0),
        (".5", "0.5", 1),
        ("1,000", "1000", 1),
        ("1,234,567.5", "1234567.5", 1),
        ("1,00", "100", 0),
        ("1,2345", "12345", 0),
        ("-3", "-3", 1),
        ("−3", "-3", 1),
        ("-3", "3", 0),
        ("3", "-3", 0),
        ("8-5=3", "3", 1),
        ("8-5", "5", 0),
        ("the range is 4 to 5", "5", 0),
        ("+3", "3", 1),
        ("７", "7", 1),
        ("－７", "-7", 1),
        ("٧", "7", 1),
        ("7²", "72", 0),
        ("7²", "7", 0),
        ("⑦", "7", 0),
        ("1e3", "1000", 1),
        ("1e999", "1", 0),
        ("14/2", "7", 1),
        ("4/5", "4", 0),
        ("4/5", "5", 0),
        ("1/0", "1", 0),
        ("1/3", "1/3", 1),
        ("1.2.3", "3", 0),
        ("x7", "7", 0),
        ("7x", "7", 0),
        ("0x10", "10", 0),
        ("7_000", "7", 0),
        ("$7", "7", 1),
        ("**7**", "7", 1),
        (r"\boxed{7}", "7", 1),
        ("#### 7", "#### 7", 1),
        ("1. 7", "7", 1),
        ("x = 3, y = 7", "7", 1),
        ("4 or 5", "5", 0),
        ("4 or 5", "4", 0),
        ("either 4, or maybe 5", "5", 0),
        ("It is 4. Or it could be 5.", "5", 0),
        ("4, 5", "5", 0),
        ("4 5", "5", 0),
        ("4;5", "5", 0),
        ("1 2 3 4 5 6 7 8 9 10", "10", 0),
        ("7 or 7.0", "7", 1),
        ("not 7", "7", 0),
        ("definitely not 42", "42", 0),
        ("It isn't 7", "7", 0),
        ("It is not equal to 7", "7", 0),
        ("never 7", "7", 0),
        ("7 is wrong", "7", 0),
        ("7 is not the answer", "7", 0),
        ("not 6 but 7", "7", 1),
        ("It is not hard: 7", "7", 1),
        ("seven", "7", 0),
        ("", "7", 0),
        ("7\x00", "7", 1),
        ("nan", "7", 0),
        ("inf", "7", 0),
        ("7" * 5000, "7", 0),
        ("7", "seven", None),
        ("7", "", None),
    ],
)
def test_number(answer, right, reward):
    assert builtin.number([answer], [right]) == [reward]
    assert builtin.number([[{"role": "assistant", "content": answer}]], [right]) == [reward]


def test_number_takes_numbers_and_none_from_the_column():
    assert builtin.number(["7", "0.1", "7"], [7, 0.1, None]) == [1, 1, None]


@pytest.mark.parametrize("text", ["1," * 100_000, "1" * 200_000, "1.1" * 60_000, "not " * 60_000 + "7", "or " * 60_000])
def test_number_is_quick_on_hostile_text(text):
    start = time.perf_counter()
    builtin.number([text], ["7"])
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("answer", "right", "reward"),
    [
        (" Paris\n", "Paris", 1),
        ("Paris.", "Paris", 0),
        ("paris", "Paris", 0),
        ("Paris or Rome", "Paris", 0),
        ("", "Paris", 0),
        ("e\u0301", "\u00e9", 1),
        ("Rome", ["Paris", "Rome"], 1),
        ("7", 7, 1),
        ("None", None, None),
        ("[]", [], None),
    ],
)
def test_exact_match(answer, right, reward):
    assert builtin.exact_match([answer], [right]) == [reward]


def test_exact_match_without_case():
    assert builtin.exact_match(["STRASSE"], ["straße"], ignore_case=True) == [1]


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("<think>a</think>4", 1),
        ("<think>\na\n</think>\n4", 1),
        ("<think></think>", 1),
        (" <think>a</think>4", 0),
        ("x<think>a</think>4", 0),
        ("<think>a", 0),
        ("a</think>", 0),
        ("</think><think>", 0),
        ("<think>a<think>b</think></think>", 0),
        ("<think>a</think><think>", 0),
        ("<THINK>a</THINK>", 0),
        ("", 0),
    ],
)
def test_think_format(answer, reward):
    assert builtin.think_format_reward([answer], solution=["4"]) == [reward]


def test_format_matches_the_whole_answer():
    answers = ["<a>4</a>", "<a>4\n</a>", "<a>4</a> and more", "x<a>4</a>", "<a>4</a>\n", ""]
    assert builtin.matches_format(answers, pattern="<a>.*</a>") == [1, 1, 0, 0, 0, 0]


def test_length_falls_over_slack():
    ids = [[0] * n for n in (0, 1, 2, 4, 5, 6, 9)]
    assert builtin.length(ids, min_tokens=2, max_tokens=4, slack=2) == [0, 0.5, 1, 1, 0.5, 0, 0]
    assert builtin.length(ids, max_tokens=4) == [1, 1, 1, 1, 0, 0, 0]


def test_repetition():
    """[1,2,1,2]: 3 bigrams, 2 distinct: -1/3. Fewer tokens than the n-gram has: nothing repeats."""
    assert builtin.repetition([[1, 2, 1, 2], [1], []], ngram_size=2) == pytest.approx([-1 / 3, 0, 0])
    assert builtin.repetition([[5] * 5], ngram_size=2, max_penalty=-2.0) == [-1.5]
    with pytest.raises(ValueError, match="at least 1"):
        builtin.repetition([[1]], ngram_size=0)


def test_overlong():
    """DAPO eq. 13 with 100 and 20: free to 80, linear to 100, -1 beyond; a cache of 0 is a step."""
    ids = [[0] * n for n in (0, 80, 81, 100, 101)]
    assert builtin.overlong(ids, max_completion_len=100, soft_punish_cache=20) == [0, 0, -0.05, -1, -1]
    assert builtin.overlong(ids, max_completion_len=100, soft_punish_cache=0) == [0, 0, 0, 0, -1]


def test_constructors_of_trl():
    """The documented examples of TRL 1.16."""
    assert builtin.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)([[1] * 90]) == [-0.5]
    penalty = builtin.get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    assert penalty([[1, 2, 3, 4], [5, 5, 5, 5, 5]], prompts=["a", "b"]) == [0.0, -0.75]
