"""Code that a model wrote, run against tests in the sandbox.

A test is one of:
- {"input": text, "output": text}: what the program reads and what it has to print, line ends and trailing space aside;
- {"call": "add(2, 3)", "expected": 5}: an expression and its value;
- "assert add(2, 3) == 5": the same, if it compares with a literal; any other statement has to run without an exception.
Printed text and values are compared outside the sandbox, with answers that the program never sees. A statement is
checked beside the program, which may attack it: prefer the other forms.
"""

from __future__ import annotations

import ast
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from burnish.rewards.sandbox import Limits, run_python
from burnish.rewards.table import reward, text_of

FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
DEEPEST = 40  # levels of a value that is read back
# Runs below the program: evaluates each test and prints one line of what came out, behind a token.
HARNESS = """

def _judge(source):
    import json, sys
    token, tests = json.loads(sys.stdin.read())
    plain = (int, float, complex, str, bytes, bool, type(None))
    def is_plain(value):
        if type(value) in (list, tuple, set, frozenset):
            return all(map(is_plain, value))
        if type(value) is dict:
            return all(is_plain(key) and is_plain(item) for key, item in value.items())
        return type(value) in plain
    names, out = {"__name__": "program"}, []
    exec(compile(source, "program.py", "exec"), names)
    for kind, text in tests:
        try:
            if kind == "call":
                value = eval(text, names)
                out.append(repr(value) if is_plain(value) else None)
            else:
                exec(text, names)
                out.append("passed")
        except Exception:
            out.append(None)
    sys.__stdout__.write("\\n" + token + json.dumps(out) + "\\n")
    sys.__stdout__.flush()

_judge(%r)
"""


@reward("code", isolation="none")
def code(
    completions: Sequence[Any],
    tests: Sequence[Any],
    *,
    seconds: float = 10.0,
    memory_mb: int = 512,
    partial_credit: bool = False,
    unsafe_local: bool = False,
) -> list[float | None]:
    """1 if the program in the answer passes all tests of the column, else 0; or the share that passes.

    The program is the last block between ``` fences, or the whole answer without one. It has the standard library and
    whatever is installed with the interpreter itself. A row without tests is not scored.

    Args:
        completions: the answers.
        tests: of each; a list, or one in JSON.
        seconds: limit of each run.
        memory_mb: limit of each process.
        partial_credit: return the share of the tests that pass.
        unsafe_local: run without a sandbox: see `burnish.rewards.sandbox.run_python`.

    Raises:
        SandboxError: there is no sandbox here, and `unsafe_local` is off.
        ValueError: a test that is none.
    """
    limits = Limits(seconds=seconds, memory=memory_mb * 2**20)

    def score(completion: Any, given: Any) -> float | None:
        wanted = _tests(given)
        if not wanted:
            return None
        program = program_of(text_of(completion))
        passed = _num_passed(program, wanted, limits, unsafe_local) if program.strip() else 0
        return passed / len(wanted) if partial_credit else float(passed == len(wanted))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(score, completions, tests))


def program_of(text: str) -> str:
    """The last fenced block of an answer, closed or not; without a fence the whole answer."""
    blocks = FENCE.findall(text)
    return blocks[-1] if blocks else text


def _tests(given: Any) -> list[tuple[str, Any, Any]]:
    """(kind, what is run, what is expected) of each test."""
    if isinstance(given, str):
        given = json.loads(given) if given.lstrip().startswith(("[", "{")) else [given]
    if isinstance(given, Mapping):
        given = [given]
    return [_test(test) for test in given or ()]


def _test(test: Any) -> tuple[str, Any, Any]:
    if isinstance(test, Mapping) and {"input", "output"} <= set(test):
        return "input", str(test["input"]), _lines(str(test["output"]))
    if isinstance(test, Mapping) and {"call", "expected"} <= set(test):
        return "call", str(test["call"]), test["expected"]
    if isinstance(test, str):
        return _comparison(test) or ("statement", test, "passed")
    raise ValueError(
        f"a test is {test!r}; it is {{'input': ..., 'output': ...}}, {{'call': ..., 'expected': ...}} or a statement"
    )


def _comparison(statement: str) -> tuple[str, str, Any] | None:
    """The call and the expected value of `assert call == literal`."""
    try:
        body = ast.parse(statement.strip()).body
        if len(body) == 1 and isinstance(body[0], ast.Assert) and isinstance(body[0].test, ast.Compare):
            compare = body[0].test
            if len(compare.ops) == 1 and isinstance(compare.ops[0], ast.Eq):
                return "call", ast.unparse(compare.left), ast.literal_eval(compare.comparators[0])
    except (SyntaxError, ValueError):
        pass
    return None


def _num_passed(program: str, tests: Sequence[tuple[str, Any, Any]], limits: Limits, unsafe_local: bool) -> int:
    passed = 0
    together = [test for test in tests if test[0] != "input"]
    for _, text, expected in (test for test in tests if test[0] == "input"):
        result = run_python(program, stdin=text, limits=limits, unsafe_local=unsafe_local)
        passed += result.exit_code == 0 and result.stopped is None and _lines(result.stdout) == expected
    if together:
        token = secrets.token_hex(16)
        stdin = json.dumps([token, [(kind, text) for kind, text, _ in together]])
        result = run_python(HARNESS % program, stdin=stdin, limits=limits, unsafe_local=unsafe_local)
        found = _found(result.stdout, token, len(together))
        passed += sum(
            value == "passed" if kind == "statement" else value is not None and _same(value, expected)
            for (kind, _, expected), value in zip(together, found, strict=True)
        )
    return passed


def _found(stdout: str, token: str, num_tests: int) -> list[Any]:
    """What the harness printed of each test; nothing of a program that ended before."""
    lines = [line for line in stdout.splitlines() if line.startswith(token)]
    try:
        found = json.loads(lines[-1].removeprefix(token)) if lines else []
    except ValueError:
        found = []
    is_sound = isinstance(found, list) and len(found) == num_tests
    return [value if isinstance(value, str) else None for value in found] if is_sound else [None] * num_tests


def _same(text: str, expected: Any) -> bool:
    """A value as Python writes it equals the expected one; a list and a tuple of the same items do, too."""
    if sum(map(text.count, "([{")) > DEEPEST and _depth(text) > DEEPEST:
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text == repr(expected)
    return _plain(value) == _plain(expected)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _plain(value: Any) -> Any:
    """Tuples as lists; a bool is no number."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return ("bool", value) if isinstance(value, bool) else value


def _lines(text: str) -> list[str]:
    """Lines without trailing space, and without empty ones at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
