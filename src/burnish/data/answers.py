"""Rows of single answers: one to imitate (`supervised`), or some of which each was judged by itself (`judged`).

The answer of a supervised row is in the first of these columns that holds something:
- `messages`, or `conversations`: the assistant's turns;
- `completion`, behind `prompt`;
- `text`: all of it;
- `chosen`, behind `prompt` if there is one: the better answer of a preference row. `rejected` is not read.

A judged row has `prompt`, `completion` and `label`, true for a desirable answer; or `prompt`, `chosen` and `rejected`,
of which the first is desirable and the second is not.

Both are read into the forms of `burnish.data.formats`; where there is one answer, it is `chosen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from burnish.data.errors import RowProblem
from burnish.data.formats import (
    CONVERSATION_COLUMN,
    ChatPreference,
    TextPreference,
    read_preference,
    read_template,
    refuse_unbuilt,
)
from burnish.data.messages import Message, check_text, is_messages, read_messages
from burnish.data.plain import is_nothing
from burnish.data.prefix import common_prefix

SUPERVISED_COLUMNS = ("messages", CONVERSATION_COLUMN, "completion", "text", "chosen")
CONVERSATIONS = SUPERVISED_COLUMNS[:2]
LABEL_COLUMN = "label"


def answer_column(row: Mapping[str, Any]) -> str:
    """The column that holds the answer of a supervised row.

    Raises:
        RowProblem: there is none.
    """
    column = next((name for name in SUPERVISED_COLUMNS if not is_nothing(row.get(name))), None)
    if column is None:
        fix = "Give messages, or prompt and completion, or text."
        raise RowProblem("completion", "the row has no answer that could be trained", value=sorted(row), fix=fix)
    return column


def read_supervised(row: Mapping[str, Any]) -> TextPreference | ChatPreference:
    """The answer of a supervised row behind its prompt, which is empty where all of a text is trained.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    refuse_unbuilt(row)
    column = answer_column(row)
    has_prompt = column == "completion" or (column == "chosen" and not is_nothing(row.get("prompt")))
    if has_prompt:
        return _read_answer(row, column)
    if isinstance(row[column], str) and column not in CONVERSATIONS:
        read_template(row, is_chat=False)
        return TextPreference(prompt="", chosen=check_text(column, row[column]), rejected="")
    ignored: set[str] = set()
    turns = read_messages(column, row[column], ignored)
    first = next((index for index, turn in enumerate(turns) if turn["role"] == "assistant"), 0)
    return _chat(row, column, turns[:first], turns[first:], ignored)


def read_judged(row: Mapping[str, Any]) -> tuple[TextPreference | ChatPreference, list[bool]]:
    """The answers of a judged row behind their prompt, and whether each is desirable.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    if LABEL_COLUMN not in row:
        return read_preference(row), [True, False]
    refuse_unbuilt(row)
    if is_nothing(row.get("completion")):
        raise RowProblem("completion", "is missing", value=row.get("completion"), fix="Give it, or remove the row.")
    return _read_answer(row, "completion"), [read_label(row[LABEL_COLUMN])]


def read_label(value: Any) -> bool:
    """Whether an answer is desirable.

    >>> read_label(True), read_label(0)
    (True, False)

    Raises:
        RowProblem: it is not true or false.
    """
    if isinstance(value, str) or value not in (0, 1):
        fix = "Give true for a desirable answer and false for an undesirable one, or 1 and 0."
        raise RowProblem(LABEL_COLUMN, "is not true or false", value=value, fix=fix)
    return bool(value)


def _read_answer(row: Mapping[str, Any], column: str) -> TextPreference | ChatPreference:
    """An answer in a column of its own, behind `prompt`: both text, or one of them messages."""
    prompt, answer = row.get("prompt"), row[column]
    if is_nothing(prompt):
        fix = "Give it, or put all that is trained into text."
        raise RowProblem("prompt", "is missing", value=prompt, fix=fix)
    if isinstance(prompt, str) and not is_messages(answer):
        read_template(row, is_chat=False)
        return TextPreference(check_text("prompt", prompt), check_text(column, answer), "")
    ignored: set[str] = set()
    before = _turns("prompt", prompt, "user", ignored)
    turns = _turns(column, answer, "assistant", ignored)
    repeated = common_prefix(before, turns)
    behind = turns[repeated:] if repeated == len(before) else turns
    return _chat(row, column, before, behind, ignored)


def _turns(column: str, value: Any, role: str, ignored: set[str]) -> list[Message]:
    if is_messages(value):
        return read_messages(column, value, ignored)
    return [{"role": role, "content": check_text(column, value)}]


def _chat(
    row: Mapping[str, Any], column: str, prompt: list[Message], answer: list[Message], ignored: set[str]
) -> ChatPreference:
    if not prompt or not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
        fix = "Give at least one turn before the assistant's, and end with one of the assistant's."
        raise RowProblem(column, "is no conversation that ends with an answer", value=[*prompt, *answer], fix=fix)
    chat = ChatPreference(prompt=prompt, chosen=answer, rejected=(), ignored_keys=frozenset(ignored))
    tools, template_kwargs = read_template(row, is_chat=True)
    return replace(chat, tools=tools, template_kwargs=template_kwargs)
