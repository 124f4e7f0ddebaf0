"""How long a piece of code is: its logical lines, formatted by ruff at 100 columns.

A line counts if it holds code: imports do, blank lines, comments and docstrings do not.
"""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Sequence
from pathlib import Path

COLUMNS = 100
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def logical_lines(source: str, members: Sequence[str] = ()) -> int:
    """Logical lines of a source text, or of some of its members.

    Args:
        source: Python.
        members: classes, functions or methods (`Class.method`) that are counted; empty: all of it.

    Raises:
        ValueError: there is no such member.

    >>> logical_lines('''"What it does."
    ... import math  # for pi
    ...
    ... def area(r):
    ...     "Of a circle."
    ...     return (
    ...         math.pi * r * r)
    ... ''')
    3
    """
    text = formatted(source)
    tree = ast.parse(text)
    lines = code_lines(text) - docstring_lines(tree)
    if not members:
        return len(lines)
    spans = [span for member in members for span in member_lines(tree, member)]
    return len(lines & set(spans))


def formatted(source: str) -> str:
    """The source as ruff formats it."""
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    command = [ruff, "format", "--isolated", "--line-length", str(COLUMNS), "--stdin-filename", "source.py", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code, counted from 1."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {line for token in tokens if token.type not in NO_CODE for line in range(token.start[0], token.end[0] + 1)}


def docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines of docstrings."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, Documented) and node.body and ast.get_docstring(node, clean=False) is not None:
            found |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def member_lines(tree: ast.Module, member: str) -> range:
    """Numbers of the lines of a class, a function or a method, its decorators included."""
    node: ast.AST = tree
    for name in member.split("."):
        inside = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == name]
        if not inside:
            raise ValueError(f"there is no {member!r} in the source")
        node = inside[-1]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return range(first, (node.end_lineno or 0) + 1)
