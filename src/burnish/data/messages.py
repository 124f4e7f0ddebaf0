"""The messages of a column in one form: `{"role", "content"}`, and what templates read beside them.

Read are lists of messages and single ones, of OpenAI's keys or ShareGPT's, and the mapping of lists that some
tables make of a list of messages. Keys that hold something and that nothing reads are collected, for the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.errors import RowProblem
from burnish.data.parts import num_images, read_parts, text_of
from burnish.data.plain import check_characters, is_nothing
from burnish.data.sharegpt import from_sharegpt, is_sharegpt
from burnish.data.tools import read_tool_calls

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
CALL_KEYS = ("tool_calls", "function_call")
UNBUILT_MESSAGE_KEYS = ("image", "images", "audio", "audios", "video", "videos")
MESSAGE_FIX = "A message is {'role': ..., 'content': ...}."
# Keys that a role may have beside its content, which templates know; those of calls are read apart.
KEYS_OF_ROLES: Mapping[str, tuple[str, ...]] = {"assistant": REASONING_KEYS, "tool": ("name", "tool_call_id")}


def is_messages(value: Any) -> bool:
    """A list, or a mapping that is a message or lists of the parts of messages."""
    return isinstance(value, list | tuple) or (isinstance(value, Mapping) and ("role" in value or "from" in value))


def read_messages(column: str, value: Any, ignored: set[str]) -> list[Message]:
    """The messages of a column.

    Args:
        column: its name, for errors.
        value: what is there.
        ignored: gets the keys that hold something and that nothing reads.

    Raises:
        RowProblem: no messages, or one that cannot be read.
    """
    if not is_messages(value):
        fix = "Give a list of messages {'role': ..., 'content': ...}; of their JSON as text, json.loads makes one."
        raise RowProblem(column, f"is {type(value).__name__}, not a list of messages", value=value, fix=fix)
    turns = list(value) if isinstance(value, list | tuple) else _turns_of(column, value)
    if not turns:
        raise RowProblem(column, "has no messages", value=[], fix="Give at least one message, or remove the row.")
    return [_read_turn(column, index, turn, ignored) for index, turn in enumerate(turns)]


def check_text(column: str, text: Any, *, where: str = "") -> str:
    """Text with something in it.

    Raises:
        RowProblem: no text, nothing in it, or characters that are none.
    """
    if text is None:
        raise RowProblem(column, f"{where}is missing", value=None, fix="Give text, or remove the row.")
    if not isinstance(text, str):
        raise RowProblem(column, f"{where}is {type(text).__name__}, not text", value=text, fix="Give text.")
    if not text.strip():
        problem = "is empty" if not text else "is only white space"
        raise RowProblem(column, f"{where}{problem}", value=text, fix="Give text, or remove it.")
    return check_characters(column, text, where=where)


def _turns_of(column: str, value: Mapping[str, Any]) -> list[Any]:
    """One message, or the messages of a mapping of lists, as `Sequence` features of `datasets` deliver them."""
    lists = {key: items for key, items in value.items() if isinstance(items, list | tuple)}
    if not isinstance(value.get("role"), list | tuple) and not isinstance(value.get("from"), list | tuple):
        return [value]
    lengths = {key: len(items) for key, items in lists.items() if len(items)}
    if len(set(lengths.values())) > 1:
        fix = "Give one value a message in each list, or a list of messages."
        raise RowProblem(column, f"has lists of different lengths: {lengths}", value=value, fix=fix)
    filled = [key for key in lists if key in lengths]
    return [dict(zip(filled, turn, strict=True)) for turn in zip(*(lists[key] for key in filled), strict=True)]


def _read_turn(column: str, index: int, turn: Any, ignored: set[str]) -> Message:
    where = f"turn {index} "
    if not isinstance(turn, Mapping):
        raise RowProblem(column, f"{where}is {type(turn).__name__}, not a message", value=turn, fix=MESSAGE_FIX)
    if is_sharegpt(turn):
        turn = from_sharegpt(column, turn, where=where)
    filled = {str(key): value for key, value in turn.items() if not is_nothing(value)}
    if unbuilt := [key for key in UNBUILT_MESSAGE_KEYS if key in filled]:
        fix = "Remove the key, if the conversation makes sense without it."
        raise RowProblem(column, f"{where}has {unbuilt[0]}, not built yet", value=filled[unbuilt[0]], fix=fix)
    role = turn.get("role")
    if role not in ROLES:
        fix = f"Allowed roles: {', '.join(ROLES)}."
        raise RowProblem(column, f"{where}has an unknown role", value=role, fix=fix)
    message: dict[str, Any] = {"role": role}
    calls = _read_calls(column, filled, where=where)
    content = turn.get("content")
    may_be_empty = bool(calls) or (role == "tool" and content is not None) or (role == "system" and content == "")
    message["content"] = _read_content(column, content, ignored, where=where, may_be_empty=may_be_empty)
    for key in KEYS_OF_ROLES.get(role, ()):
        if key in filled:
            message[key] = _read_key(column, key, filled[key], where=where)
    if calls:
        message["tool_calls"] = calls
    ignored |= filled.keys() - message.keys() - {"content", *CALL_KEYS}
    return message


def _read_content(column: str, content: Any, ignored: set[str], *, where: str, may_be_empty: bool) -> Any:
    """Text, "" for the null or the white space of a turn that may be empty, the text of parts, or parts with images.

    A system turn may be "": that keeps some templates from writing one of their own.
    """
    where = f"content of {where}"
    if isinstance(content, list | tuple) and content:
        parts = read_parts(column, content, where=where)
        ignored |= {f"content.{key}" for part in content for key in _filled_keys(part) - {"type", "text"}}
        if num_images(parts):
            check_characters(column, text_of(parts), where=where)
            return parts
        content = parts
    if may_be_empty and is_nothing(content):
        return ""
    if may_be_empty and isinstance(content, str):
        return check_characters(column, content, where=where)
    return check_text(column, content, where=where)


def _filled_keys(part: Mapping[str, Any]) -> set[str]:
    return {str(key) for key, value in part.items() if not is_nothing(value)}


def _read_key(column: str, key: str, value: Any, *, where: str) -> str:
    if not isinstance(value, str):
        fix = "Give text, or remove the key."
        raise RowProblem(column, f"{key} of {where}is {type(value).__name__}, not text", value=value, fix=fix)
    return check_characters(column, value, where=f"{key} of {where}")


def _read_calls(column: str, filled: Mapping[str, Any], *, where: str) -> list[Mapping[str, Any]]:
    given = [key for key in CALL_KEYS if key in filled]
    if not given:
        return []
    key = given[0]
    if filled["role"] != "assistant":
        fix = "Only an assistant's turn calls tools; give the result as {'role': 'tool', 'content': ...}."
        raise RowProblem(column, f"{where}has {key}, but is no assistant's", value=filled[key], fix=fix)
    if len(given) > 1:
        fix = "Keep tool_calls."
        raise RowProblem(column, f"{where}has {' and '.join(given)}", value=filled[given[1]], fix=fix)
    calls = [filled[key]] if key == "function_call" else filled[key]
    return read_tool_calls(column, calls, where=f"{key} of {where}")
