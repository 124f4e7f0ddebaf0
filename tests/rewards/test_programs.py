from __future__ import annotations

import json

import pytest
from reward_rounds import make_answers

from burnish.rewards import RewardError, Scorer, sandbox
from burnish.rewards.programs import _same, _tests, code, program_of
from burnish.rewards.sandbox import SandboxError, sandbox_problem

needs_sandbox = pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}")
ADD = "```python\ndef add(a, b):\n    return a + b\n```"


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("Look:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```Python\r\nx = 1\r\n```", "x = 1\r\n"),
        ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "x = 1"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("", ""),
    ],
)
def test_the_program_is_the_last_block(text, program):
    assert program_of(text) == program


def test_tests_in_every_form():
    assert _tests('["assert f(1) == 2"]') == [("call", "f(1)", 2)]
    assert _tests({"input": "1", "output": "2 \n\n"}) == [("input", "1", ["2"])]
    assert _tests("assert f(1) == [1, (2, 3)]") == [("call", "f(1)", [1, (2, 3)])]
    assert _tests(["assert f(1)", "f(2)"]) == [("statement", "assert f(1)", "passed"), ("statement", "f(2)", "passed")]
    assert _tests([{"call": "f(1)", "expected": None}]) == [("call", "f(1)", None)]
    assert _tests(None) == _tests([]) == _tests("[]") == []
    with pytest.raises(ValueError, match=r"a test is 3; it is \{'input'"):
        _tests([3])


@pytest.mark.parametrize(
    ("text", "expected", "same"),
    [
        ("5", 5, True),
        ("5.0", 5, True),
        ("(1, [2])", [1, (2,)], True),
        ("{1, 2}", {2, 1}, True),
        ("'a'", "a", True),
        ("nan", float("nan"), True),
        ("True", 1, False),
        ("1", True, False),
        ("[True]", [1], False),
        ("'5'", 5, False),
        ("[" * 5000 + "]" * 5000, [], False),
        ("__import__('os')", 5, False),
        ("1 +", 5, False),
    ],
)
def test_values_are_compared_outside(text, expected, same):
    assert _same(text, expected) is same


@needs_sandbox
def test_code():
    tests = ["assert add(2, 3) == 5", {"call": "add('a', 'b')", "expected": "ab"}, "assert isinstance(add(1, 1), int)"]
    completions = [ADD, ADD.replace("+", "-"), "def add(a, b): return a + b", "no code", "", ADD]
    assert code(completions, [tests] * 5 + [[]]) == [1, 0, 1, 0, 0, None]


@needs_sandbox
def test_partial_credit_and_programs_that_read_and_print():
    tests = json.dumps([{"input": f"{n}\n", "output": f"{2 * n}"} for n in (1, 2, 3, 4)])
    answers = ["print(2 * int(input()))", "print(int(input()) ** 2)", "print(2 * int(input())); raise SystemExit(1)"]
    assert code(answers, [tests] * 3, partial_credit=True) == [1, 0.25, 0]


CHEATS = {
    "always equal": "class A:\n    def __eq__(self, other): return True\ndef add(a, b): return A()",
    "an int that is always equal": "class A(int):\n    def __eq__(self, other): return True\ndef add(a, b): return A()",
    "a fitting repr": "class A:\n    def __repr__(self): return '5'\ndef add(a, b): return A()",
    "leaves": "import sys; sys.exit(0)",
    "leaves at once": "import os; os._exit(0)",
    "leaves when called": "import os\ndef add(a, b): os._exit(0)",
    "prints that all is well": "print('passed'); print('1.0'); print('[\"5\"]')",
    "prints a token": "print('0' * 32 + '[\"5\"]')\nimport os, sys; sys.stdout.flush(); os._exit(0)",
    "takes the tests": "import sys; print(sys.stdin.read()); sys.stdout.flush()",
    "closes stdout": "import sys; sys.stdout.close()\ndef add(a, b): return 5.5",
    "kills everybody": "import os; os.kill(-1, 9); os.kill(os.getpid(), 9)",
    "never ends": "while True: pass",
    "catches nothing": "def add(a, b): raise SystemExit",
    "is no program": "def add(a, b:",
}


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_fail(name):
    assert code([CHEATS[name]], [["assert add(2, 3) == 5"]], seconds=1) == [0]


def no_sandbox(*_, **__):
    raise SandboxError("no sandbox")


def test_without_a_sandbox_nothing_is_scored(monkeypatch):
    """Not a zero: a failure of the function, and its policy."""
    monkeypatch.setattr(sandbox, "_settings", no_sandbox)
    answers = make_answers([ADD], tests=[["assert add(2, 3) == 5"]])
    with pytest.raises(RewardError, match="'code' raised SandboxError: no sandbox"):
        Scorer("code").score(answers, num_tokens=60)
    table, log = Scorer("code", on_error="unscored").score(answers, num_tokens=60)
    assert table.rewards.isnan().all()
    assert log.metrics["reward_errors/code"].total.item() == 1


def test_unsafe_local_is_an_option():
    answers = make_answers([ADD, "x"], tests=[["assert add(2, 3) == 5"]] * 2)
    table, _ = Scorer("code", options={"code": {"unsafe_local": True}}).score(answers, num_tokens=60)
    assert table.rewards[:, 0].tolist() == [1, 0]
