"""Accepted data set schemas -> canonical rows. Each row decides for itself, whatever the first row is.

The answers `chosen` and `rejected` are both text, or both messages (`burnish.data.messages`). The prompt is
- text before answers of text;
- messages before answers of messages, which then start and end with an assistant's turn, or before answers of text,
  each of which is one assistant's turn;
- text before answers of messages: the question, as one user's turn, or, if the answers begin with that very turn,
  the turns that both begin with;
- in the column `conversations`, as messages; a text in the column `system` is then its system turn;
- in no column: both answers begin with it (`burnish.data.prefix` says where it ends).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.data.errors import RowProblem, excerpt
from burnish.data.messages import Message, check_text, is_messages, read_messages
from burnish.data.parts import IMAGE_COLUMNS
from burnish.data.plain import is_nothing
from burnish.data.prefix import common_prefix, implicit_chat_prompt, implicit_text_prompt
from burnish.data.tools import TEMPLATE_COLUMN, TOOLS_COLUMN, Nested, read_template_kwargs, read_tools

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected")
ANSWERS = PREFERENCE_COLUMNS[1:]
CONVERSATION_COLUMN = "conversations"
SYSTEM_COLUMN = "system"
OPTIONAL_COLUMNS = (CONVERSATION_COLUMN, TOOLS_COLUMN, TEMPLATE_COLUMN)
UNBUILT_COLUMNS = ("video", "videos", "audio", "audios")


@dataclass(frozen=True)
class TextPreference:
    """A preference row as text. The model sees `prompt + chosen` and `prompt + rejected`."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ChatPreference:
    """A preference row as messages of `role`, `content` and what templates read beside them.

    Attributes:
        prompt, chosen, rejected: messages; the answers start and end with an assistant's turn.
        ignored_keys: other keys of its messages, which nothing reads.
        tools: JSON schemas of the tools that the chat template gets.
        template_kwargs: variables that the chat template gets.
    """

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected: Sequence[Message]
    ignored_keys: frozenset[str] = field(default_factory=frozenset[str])
    tools: tuple[Nested, ...] = ()
    template_kwargs: Nested = field(default_factory=dict[str, Any])


def read_preference(row: Mapping[str, Any]) -> TextPreference | ChatPreference:
    """One row in canonical form.

    A row without the keys `prompt` and `conversations` has an implicit prompt; a null prompt is a fault.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    refuse_unbuilt(row)
    column = _prompt_column(row)
    kinds = {name: _kind(name, row.get(name)) for name in (column, *ANSWERS) if name is not None}
    if kinds["chosen"] != kinds["rejected"] or kinds.get(CONVERSATION_COLUMN) == "text":
        raise _mixed_layout(row, kinds)
    is_chat = kinds["chosen"] != "text" or (column is not None and kinds[column] != "text")
    tools, template_kwargs = read_template(row, is_chat=is_chat)
    if not is_chat:
        return _read_texts(row)
    return replace(_read_chats(row, column, kinds), tools=tools, template_kwargs=template_kwargs)


def read_template(row: Mapping[str, Any], *, is_chat: bool) -> tuple[tuple[Nested, ...], Nested]:
    """The tools of a row, and the variables that it gives its chat template.

    Args:
        row: as it was given.
        is_chat: it is made of messages.

    Raises:
        RowProblem: one that cannot be read, or a row of text that has one.
    """
    tools, template_kwargs = read_tools(row.get(TOOLS_COLUMN)), read_template_kwargs(row.get(TEMPLATE_COLUMN))
    for name, value in ((TOOLS_COLUMN, tools), (TEMPLATE_COLUMN, template_kwargs)):
        if value and not is_chat:
            fix = "Give prompt and answers as messages, or remove the column."
            raise RowProblem(name, "is read by chat templates only, and the row is text", value=value, fix=fix)
    return tools, template_kwargs


def content_columns(present: Sequence[str]) -> list[str]:
    """Of the columns of a data set, those that make its rows, or are refused if they hold something."""
    system = [SYSTEM_COLUMN] if CONVERSATION_COLUMN in present else []
    known = {*PREFERENCE_COLUMNS, *OPTIONAL_COLUMNS, *IMAGE_COLUMNS, *UNBUILT_COLUMNS, *system}
    return [column for column in present if column in known]


def refuse_unbuilt(row: Mapping[str, Any]) -> None:
    """Refuse columns whose content would change the text that the model sees and that nothing here reads.

    Raises:
        RowProblem: such a column holds something.
    """
    for name in UNBUILT_COLUMNS:
        if name in row and not is_nothing(row[name]):
            fix = f"Remove the column: dataset.remove_columns({name!r}), if the rows make sense without it."
            raise RowProblem(name, f"{name} are not built yet", value=row[name], fix=fix)


def _prompt_column(row: Mapping[str, Any]) -> str | None:
    """The column of the row's prompt, or None if its answers contain the prompt."""
    if is_nothing(row.get(CONVERSATION_COLUMN)):
        if not is_nothing(row.get(SYSTEM_COLUMN)) and CONVERSATION_COLUMN in row:
            fix = "Put it into the prompt as {'role': 'system', 'content': ...}, or remove it."
            raise RowProblem(SYSTEM_COLUMN, "is read beside conversations only", value=row[SYSTEM_COLUMN], fix=fix)
        names = [name for name in ("prompt", CONVERSATION_COLUMN) if name in row]
        return names[0] if names else None
    if not is_nothing(row.get("prompt")):
        fix = "Give one of the two: remove the column prompt or conversations."
        raise RowProblem("prompt", "is given, and conversations too", value=row["prompt"], fix=fix)
    return CONVERSATION_COLUMN


def _kind(column: str, value: Any) -> str:
    if value is None or (isinstance(value, Mapping) and is_nothing(value)):
        fix = "Give it, or remove the row."
        if column == "prompt":
            fix = "Give it, or remove the prompt column if chosen and rejected contain the prompt in every row."
        raise RowProblem(column, "is missing", value=None, fix=fix)
    if isinstance(value, str):
        return "text"
    if is_messages(value):
        return "messages"
    fix = "Give text, or a list of messages {'role': ..., 'content': ...}."
    raise RowProblem(column, f"is {type(value).__name__}, not text or messages", value=value, fix=fix)


def _mixed_layout(row: Mapping[str, Any], kinds: Mapping[str, str]) -> RowProblem:
    shown = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
    if kinds["chosen"] == kinds["rejected"]:
        fix = "Give conversations as a list of messages, or rename the column to prompt."
        return RowProblem(CONVERSATION_COLUMN, f"mixed layout: {shown}", value=row[CONVERSATION_COLUMN], fix=fix)
    odd = "chosen" if kinds["rejected"] in [kind for name, kind in kinds.items() if name not in ANSWERS] else "rejected"
    fix = "Give both answers as text, or both as messages: chosen = [{'role': 'assistant', 'content': chosen}]."
    return RowProblem(odd, f"mixed layout: {shown}", value=row[odd], fix=fix)


def _read_texts(row: Mapping[str, Any]) -> TextPreference:
    chosen, rejected = (check_text(name, row[name]) for name in ANSWERS)
    if chosen == rejected:
        raise _no_signal(rejected)
    if "prompt" in row:
        return TextPreference(prompt=check_text("prompt", row["prompt"]), chosen=chosen, rejected=rejected)
    end = implicit_text_prompt(chosen, rejected)
    if end is None:
        fix = "Add a prompt column; without one, both must begin with the same words and end with an answer."
        raise RowProblem("prompt", "is missing, and chosen and rejected share no first words", value=chosen, fix=fix)
    return TextPreference(prompt=chosen[:end], chosen=chosen[end:], rejected=rejected[end:])


def _read_chats(row: Mapping[str, Any], column: str | None, kinds: Mapping[str, str]) -> ChatPreference:
    ignored: set[str] = set()
    chosen, rejected = (_read_answer(name, row[name], ignored) for name in ANSWERS)
    if chosen == rejected:
        raise _no_signal(row["rejected"])
    if column is None:
        prompt, chosen, rejected = _split_prompt(chosen, rejected)
    elif kinds[column] == "text":
        prompt, chosen, rejected = _join_text_prompt(check_text(column, row[column]), chosen, rejected)
    else:
        prompt = read_messages(column, row[column], ignored)
    if column == CONVERSATION_COLUMN and not is_nothing(row.get(SYSTEM_COLUMN)):
        prompt = _with_system(check_text(SYSTEM_COLUMN, row[SYSTEM_COLUMN]), prompt)
    _check_order(column or "prompt", prompt, {"chosen": chosen, "rejected": rejected})
    return ChatPreference(prompt=prompt, chosen=chosen, rejected=rejected, ignored_keys=frozenset(ignored))


def _read_answer(column: str, value: Any, ignored: set[str]) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": check_text(column, value)}]
    return read_messages(column, value, ignored)


def _split_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    end = implicit_chat_prompt(chosen, rejected)
    if end is None:
        fix = "Add a prompt column; without one, both begin with the same turns before an assistant turn."
        raise RowProblem("prompt", "is missing, and chosen and rejected share no first turns", value=chosen[0], fix=fix)
    return chosen[:end], chosen[end:], rejected[end:]


def _join_text_prompt(
    prompt: str, chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt as messages, and the answers without it."""
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        return [{"role": "user", "content": prompt}], chosen, rejected
    fix = "Let both answers begin with the user's turn that is the prompt, or both with an assistant's turn."
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        first = next((turn for turn in turns if turn["role"] != "system"), turns[-1])
        if first["role"] != "user":
            problem = f"does not begin with the user's turn of the prompt {excerpt(prompt, length=40)}"
            raise RowProblem(name, problem, value=first, fix=fix)
        if first["content"] != prompt:
            problem = f"begins with another user's turn than the prompt {excerpt(prompt, length=40)}"
            raise RowProblem(name, problem, value=first["content"], fix=f"{fix} Or remove the prompt column.")
    end = implicit_chat_prompt(chosen, rejected)
    if end is None:
        fix = "After the turns that chosen and rejected begin with, an assistant's turn follows in both."
        raise RowProblem("rejected", "begins with other turns than chosen", value=rejected[:2], fix=fix)
    return chosen[:end], chosen[end:], rejected[end:]


def _with_system(text: str, prompt: list[Message]) -> list[Message]:
    first = prompt[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, *prompt]
    if first["content"] != text:
        fix = "Keep one of the two."
        raise RowProblem(SYSTEM_COLUMN, "is not the system turn of conversations", value=text, fix=fix)
    return prompt


def _check_order(column: str, prompt: Sequence[Message], answers: Mapping[str, Sequence[Message]]) -> None:
    if prompt[-1]["role"] == "assistant":
        fix = "Move the last turn of the prompt to the front of both answers, or remove it."
        raise RowProblem(column, "ends with an assistant turn", value=prompt[-1], fix=fix)
    for name, answer in answers.items():
        for place, turn in (("starts", answer[0]), ("ends", answer[-1])):
            if turn["role"] != "assistant":
                fix = "An answer starts and ends with an assistant turn; what is before belongs to the prompt."
                if common_prefix(prompt, answer) == len(prompt):
                    fix = f"It repeats the prompt: dataset.remove_columns({column!r}), if all rows do."
                raise RowProblem(name, f"{place} with a {turn['role']} turn", value=turn, fix=fix)


def _no_signal(value: Any) -> RowProblem:
    fix = "Remove the row: there is nothing to prefer."
    return RowProblem("rejected", "is the same as chosen", value=value, fix=fix)
