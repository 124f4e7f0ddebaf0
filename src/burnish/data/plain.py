"""Nested values of a row: lists and mappings of text, numbers and truth values, as JSON and tables have them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from burnish.data.errors import RowProblem

MAX_DEPTH = 64
SURROGATE = re.compile("[\ud800-\udfff]")


def is_nothing(value: Any) -> bool:
    """What tables put where a row has no value: null, nothing in it, or a mapping of nothing.

    >>> is_nothing({"enable_thinking": None}), is_nothing(0)
    (True, False)
    """
    if isinstance(value, Mapping):
        return all(is_nothing(item) for item in value.values())
    return value is None or (isinstance(value, str | list | tuple) and len(value) == 0)


def check_characters(column: str, text: str, *, where: str = "") -> str:
    """Text that a tokenizer can read; it may be empty.

    Raises:
        RowProblem: a NUL character or a lone surrogate.
    """
    if "\x00" in text:
        fix = "Remove the character; the text is probably binary or wrongly decoded."
        raise RowProblem(column, f"{where}has a NUL character at {text.index(chr(0))}", value=text, fix=fix)
    if not text.isascii() and SURROGATE.search(text):
        fix = "Repair the text: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        raise RowProblem(column, f"{where}has a lone surrogate, which is no Unicode text", value=text, fix=fix)
    return text


def check_nested(column: str, value: Any, *, where: str = "", depth: int = 0) -> None:
    """A value that a chat template may print as JSON.

    Raises:
        RowProblem: text that is no text, a number that is not finite, another type, or too many levels.
    """
    if depth > MAX_DEPTH:
        raise RowProblem(column, f"{where}has more than {MAX_DEPTH} levels", value=value, fix="Give a flatter value.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RowProblem(column, f"{where}has a key that is no text", value=key, fix="Give text as keys.")
            check_characters(column, key, where=f"{where}key {key!a} ")
            check_nested(column, item, where=where, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_nested(column, item, where=where, depth=depth + 1)
    elif isinstance(value, str):
        check_characters(column, value, where=where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowProblem(column, f"{where}has a number that is not finite", value=value, fix="Give a number or null.")
    elif value is not None and not isinstance(value, bool | int | float):
        fix = "Give lists and mappings of text, numbers, true, false and null."
        raise RowProblem(column, f"{where}has {type(value).__name__}, which is no JSON value", value=value, fix=fix)


def drop_nulls(value: Any) -> Any:
    """The value without the keys whose value is None, which tables fill in where rows have different keys.

    >>> drop_nulls({"city": {"type": "string", "enum": None}, "day": None})
    {'city': {'type': 'string'}}
    """
    if isinstance(value, Mapping):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def read_nested(column: str, value: Any, *, where: str = "") -> Any:
    """A nested value of a table without its nulls, or what a text of JSON holds, nulls included.

    Raises:
        RowProblem: text that is no JSON, or a value that is none.
    """
    if not isinstance(value, str):
        check_nested(column, value, where=where)
        return drop_nulls(value)
    try:
        parsed = json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        fix = "Give valid JSON, or the value itself."
        raise RowProblem(column, f"{where}is text, but no JSON: {error}", value=value, fix=fix) from error
    check_nested(column, parsed, where=where)
    return parsed


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
