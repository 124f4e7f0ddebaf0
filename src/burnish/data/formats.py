r"""Accepted data set schemas -> canonical rows. Each row decides for itself, whatever the first row is.

A preference row is one of
- prompt, chosen, rejected as text;
- the same three as lists of messages `{"role": ..., "content": ...}`, of which chosen and rejected start and
  end with an assistant turn;
- chosen and rejected alone, in either form, both of which contain the prompt (the data set has no prompt
  column).

Where an implicit prompt ends. Messages: after the longest common prefix of whole turns that an assistant's
turn follows in both. Text: the longest common prefix is cut back to its last white space, so that no word is
split and no answer is empty; line breaks there belong to the prompt, a single space to the answer's first
word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.data.errors import RowProblem

Message = Mapping[str, str]

ROLES = ("system", "user", "assistant", "tool")
PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected")
NUMBER_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "ref_chosen_logps": ("ref_chosen_logps", "reference_chosen_logps"),
    "ref_rejected_logps": ("ref_rejected_logps", "reference_rejected_logps"),
    "weight": ("weight",),
    "margin": ("margin",),
}
UNBUILT_COLUMNS = ("tools", "image", "images", "video", "videos", "audio", "audios", "chat_template_kwargs")
UNBUILT_MESSAGE_KEYS = ("tool_calls", "function_call", "reasoning_content", "thinking", "images", "audio")


@dataclass(frozen=True)
class TextPreference:
    """A preference row as text. The model sees `prompt + chosen` and `prompt + rejected`."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ChatPreference:
    """A preference row as messages of `role` and `content`.

    Attributes:
        ignored_keys: other keys of its messages, which nothing reads.
    """

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected: Sequence[Message]
    ignored_keys: frozenset[str] = field(default_factory=frozenset[str])


def read_preference(row: Mapping[str, Any]) -> TextPreference | ChatPreference:
    """One row in canonical form.

    A row without the key `prompt` has an implicit prompt; a null prompt is a fault.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    refuse_unbuilt(row)
    columns = [name for name in PREFERENCE_COLUMNS if name in row or name != "prompt"]
    kinds = {name: _kind(name, row.get(name)) for name in columns}
    if len(set(kinds.values())) > 1:
        raise _mixed_layout(row, kinds)
    return _read_texts(row) if kinds["chosen"] == "text" else _read_chats(row)


def read_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The optional numbers of a row, under their canonical names; only those whose column the row has.

    Raises:
        RowProblem: null, not a number or not finite; a negative weight; one reference log-prob without the
            other.
    """
    numbers: dict[str, float] = {}
    for name, spellings in NUMBER_COLUMNS.items():
        column = next((spelling for spelling in spellings if spelling in row), None)
        if column is not None:
            numbers[name] = _number(column, row[column])
    if ("ref_chosen_logps" in numbers) != ("ref_rejected_logps" in numbers):
        given, missing = sorted(["ref_chosen_logps", "ref_rejected_logps"], key=lambda name: name not in numbers)
        fix = f"Add {missing}, or remove {given} to have the reference model score the rows."
        raise RowProblem(missing, f"is missing although {given} is given", value=None, fix=fix)
    if numbers.get("weight", 0.0) < 0:
        fix = "A weight is 0 or more; to say that the other answer is better, swap chosen and rejected."
        raise RowProblem("weight", "is negative", value=numbers["weight"], fix=fix)
    return numbers


def refuse_unbuilt(row: Mapping[str, Any]) -> None:
    """Refuse columns whose content would change the text that the model sees and that nothing here reads.

    Raises:
        RowProblem: such a column holds something.
    """
    for name in UNBUILT_COLUMNS:
        if name in row and not _is_nothing(row[name]):
            fix = f"Remove the column: dataset.remove_columns({name!r}), if the rows make sense without it."
            raise RowProblem(name, f"{name} are not built yet", value=row[name], fix=fix)


def _is_nothing(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_nothing(item) for item in value.values())
    return value is None or (isinstance(value, str | list | tuple) and len(value) == 0)


def _kind(column: str, value: Any) -> str:
    if value is None:
        fix = "Give it, or remove the row."
        if column == "prompt":
            fix = "Give it, or remove the prompt column if chosen and rejected contain the prompt in every row."
        raise RowProblem(column, "is missing", value=None, fix=fix)
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "messages"
    fix = "Give text, or a list of messages {'role': ..., 'content': ...}."
    raise RowProblem(column, f"is {type(value).__name__}, not text or messages", value=value, fix=fix)


def _mixed_layout(row: Mapping[str, Any], kinds: Mapping[str, str]) -> RowProblem:
    shown = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
    column = "prompt" if kinds["chosen"] == kinds["rejected"] else "rejected"
    fix = "This layout is not built yet; give all of them as text or all as messages."
    if column == "prompt" and kinds["chosen"] == "messages":
        fix = (
            "This layout is not built yet. If chosen and rejected begin with the prompt's turn: "
            "dataset.remove_columns('prompt'). If not: prompt = [{'role': 'user', 'content': prompt}]."
        )
    elif column == "prompt":
        fix = "Not built yet. Convert both answers: chosen = [{'role': 'assistant', 'content': chosen}]."
    return RowProblem(column, f"mixed layout: {shown}", value=row[column], fix=fix)


def _number(column: str, value: Any) -> float:
    fix = "Give a finite number in every row, or remove the column."
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem(column, "is not a number", value=value, fix=fix)
    if not math.isfinite(value):
        raise RowProblem(column, "is not finite", value=value, fix=fix)
    return float(value)


def _check_text(column: str, text: Any, *, where: str = "") -> str:
    if text is None:
        raise RowProblem(column, f"{where}is missing", value=None, fix="Give text, or remove the row.")
    if isinstance(text, list | tuple):
        fix = "Join its text parts into one string; images and audio are not built yet."
        raise RowProblem(column, f"{where}is a list of parts", value=text, fix=fix)
    if not isinstance(text, str):
        raise RowProblem(column, f"{where}is {type(text).__name__}, not text", value=text, fix="Give text.")
    if not text.strip():
        problem = "is empty" if not text else "is only white space"
        raise RowProblem(column, f"{where}{problem}", value=text, fix="Give text, or remove it.")
    if "\x00" in text:
        fix = "Remove the character; the text is probably binary or wrongly decoded."
        raise RowProblem(column, f"{where}has a NUL character at {text.index(chr(0))}", value=text, fix=fix)
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        fix = "Repair the text: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        raise RowProblem(column, f"{where}has a lone surrogate, which is no Unicode text", value=text, fix=fix)
    return text


def _read_texts(row: Mapping[str, Any]) -> TextPreference:
    chosen = _check_text("chosen", row["chosen"])
    rejected = _check_text("rejected", row["rejected"])
    if chosen == rejected:
        raise _no_signal(rejected)
    if "prompt" in row:
        return TextPreference(prompt=_check_text("prompt", row["prompt"]), chosen=chosen, rejected=rejected)
    end = implicit_text_prompt(chosen, rejected)
    if end is None:
        fix = "Add a prompt column; without one, both must begin with the same words and end with an answer."
        raise RowProblem("prompt", "is missing, and chosen and rejected share no first words", value=chosen, fix=fix)
    return TextPreference(prompt=chosen[:end], chosen=chosen[end:], rejected=rejected[end:])


def implicit_text_prompt(chosen: str, rejected: str) -> int | None:
    r"""Where the prompt ends that two texts begin with, or None if there is no such place.

    >>> implicit_text_prompt("Sky? It is blue", "Sky? It is red")   # the space belongs to " blue"
    10
    >>> implicit_text_prompt("Sky?\nblue", "Sky?\nblack")           # the line break belongs to the prompt
    5
    >>> implicit_text_prompt("Yes ", "No!") is None
    True
    """
    for end in range(common_prefix(chosen, rejected), 0, -1):
        following = {chosen[end : end + 1], rejected[end : end + 1]}
        before_space = all(char.isspace() for char in following) and not following <= {"\n", "\r"}
        if not before_space and chosen[end - 1] not in "\n\r":
            continue
        if chosen[:end].strip() and chosen[end:].strip() and rejected[end:].strip():
            return end
    return None


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences begin with in common.

    >>> common_prefix("sky", "skin")
    2
    """
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(index for index in range(shorter) if first[index] != second[index])


def _read_chats(row: Mapping[str, Any]) -> ChatPreference:
    ignored: set[str] = set()
    turns = {name: _read_turns(name, row[name], ignored) for name in PREFERENCE_COLUMNS if name in row}
    chosen, rejected = turns["chosen"], turns["rejected"]
    if chosen == rejected:
        raise _no_signal(row["rejected"])
    prompt = turns.get("prompt")
    if prompt is None:
        end = _implicit_chat_prompt(chosen, rejected)
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    if prompt[-1]["role"] == "assistant":
        fix = "Move the last turn of the prompt to the front of both answers, or remove it."
        raise RowProblem("prompt", "ends with an assistant turn", value=prompt[-1], fix=fix)
    for name, completion in (("chosen", chosen), ("rejected", rejected)):
        for place, turn in (("starts", completion[0]), ("ends", completion[-1])):
            if turn["role"] != "assistant":
                fix = "An answer starts and ends with an assistant turn; what is before belongs to the prompt."
                raise RowProblem(name, f"{place} with a {turn['role']} turn", value=turn, fix=fix)
    return ChatPreference(prompt=prompt, chosen=chosen, rejected=rejected, ignored_keys=frozenset(ignored))


def _read_turns(column: str, turns: Iterable[Any], ignored: set[str]) -> list[Message]:
    messages = [_read_turn(column, index, turn, ignored) for index, turn in enumerate(turns)]
    if not messages:
        raise RowProblem(column, "has no messages", value=[], fix="Give at least one message, or remove the row.")
    return messages


def _read_turn(column: str, index: int, turn: Any, ignored: set[str]) -> Message:
    if not isinstance(turn, Mapping):
        fix = "A message is {'role': ..., 'content': ...}."
        raise RowProblem(column, f"turn {index} is {type(turn).__name__}, not a message", value=turn, fix=fix)
    filled = {key for key, value in turn.items() if not _is_nothing(value)}
    if unbuilt := sorted(filled.intersection(UNBUILT_MESSAGE_KEYS)):
        fix = "Remove the key, if the conversation makes sense without it."
        raise RowProblem(column, f"turn {index} has {unbuilt[0]}, not built yet", value=turn[unbuilt[0]], fix=fix)
    if turn.get("role") not in ROLES:
        fix = f"Allowed roles: {', '.join(ROLES)}."
        raise RowProblem(column, f"turn {index} has an unknown role", value=turn.get("role"), fix=fix)
    ignored |= filled - {"role", "content"}
    return {
        "role": turn["role"],
        "content": _check_text(column, turn.get("content"), where=f"content of turn {index} "),
    }


def _implicit_chat_prompt(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    last = min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    for end in range(last, 0, -1):
        answers = chosen[end]["role"] == rejected[end]["role"] == "assistant"
        if answers and chosen[end - 1]["role"] != "assistant":
            return end
    fix = "Add a prompt column; without one, both begin with the same turns before an assistant turn."
    raise RowProblem("prompt", "is missing, and chosen and rejected share no first turns", value=chosen[0], fix=fix)


def _no_signal(value: Any) -> RowProblem:
    fix = "Remove the row: there is nothing to prefer."
    return RowProblem("rejected", "is the same as chosen", value=value, fix=fix)
