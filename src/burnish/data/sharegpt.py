"""Messages of ShareGPT, `{"from": "human", "value": ...}`, as messages of `role` and `content`.

A `function_call` holds the JSON of one call or of several, and becomes an assistant's turn with `tool_calls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.errors import RowProblem
from burnish.data.plain import is_nothing, read_nested

SENDERS: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard", "function_call"), "assistant"),
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
CALLS = "function_call"


def is_sharegpt(turn: Mapping[str, Any]) -> bool:
    """A turn that names its sender in `from`, and no role.

    >>> is_sharegpt({"from": "gpt", "value": "a", "role": None})
    True
    """
    return not is_nothing(turn.get("from")) and is_nothing(turn.get("role"))


def from_sharegpt(column: str, turn: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The turn with `role` and `content`; its other keys stay.

    Args:
        column: the turn's column, for errors.
        turn: has `from`.
        where: which turn, for errors, with a blank at its end.

    Raises:
        RowProblem: an unknown sender, a value beside a content, or a function call that is no JSON.
    """
    sender, value = turn["from"], turn.get("value")
    if not isinstance(sender, str) or sender not in SENDERS:
        fix = f"Allowed in from: {', '.join(SENDERS)}."
        raise RowProblem(column, f"{where}is from an unknown sender", value=sender, fix=fix)
    if not is_nothing(turn.get("content")):
        fix = "Give {'from': ..., 'value': ...} or {'role': ..., 'content': ...}."
        raise RowProblem(column, f"{where}has from and content", value=turn, fix=fix)
    others = {key: item for key, item in turn.items() if key not in ("from", "value", "role", "content")}
    if sender != CALLS or is_nothing(value):
        return {**others, "role": SENDERS[sender], "content": value}
    calls = read_nested(column, value, where=f"{CALLS} of {where}")
    return {**others, "role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls]}
