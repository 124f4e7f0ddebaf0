"""The chat template of a tokenizer: the only place that calls it, and what it leaves unread of a row.

A template is code that comes with a model. Whatever it raises becomes a problem of the row, or, if no row could be
rendered with it, an error that names the tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ChatPreference
from burnish.data.messages import REASONING_KEYS, Message
from burnish.data.parts import Part, as_parts, text_of
from burnish.data.tools import TEMPLATE_COLUMN, TOOLS_COLUMN
from burnish.registry import closest

PROBE_KEY = "burnish_probe"
PROBE = {PROBE_KEY: "x"}
READ_BY_ALL = frozenset({"role", "content", "tool_calls"})
TAIL = 400  # characters before the end of a turn in which its last two special tokens are
TEMPLATE_ERRORS = (
    TemplateError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip


def render(
    tokenizer: PreTrainedTokenizerBase,
    row: ChatPreference,
    messages: Sequence[Message],
    *,
    column: str,
    open_answer: bool = False,
) -> str:
    """Messages of a row as text; `open_answer` adds the header of the assistant's turn.

    Args:
        tokenizer: has the chat template.
        row: its tools and template variables.
        messages: the turns to render.
        column: the column that is at fault if the template refuses them.
        open_answer: the template's `add_generation_prompt`.

    Raises:
        DataError: the tokenizer has no chat template that can be used.
        RowProblem: the template refuses the messages.
    """
    check_chat_template(tokenizer)
    conversation = [_with_reasoning(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, tools=_tools(row), tokenize=False, add_generation_prompt=open_answer, **row.template_kwargs
        )
    except TemplateSyntaxError as error:
        raise _unusable(tokenizer, f"has a chat template that is no template: {error}") from error
    except TEMPLATE_ERRORS as error:
        roles = ", ".join(message["role"] for message in messages)
        fix = "Change the turns to what the template allows, or give the tokenizer another template."
        problem = f"the chat template refuses the turns: {str(error) or type(error).__name__}"
        raise RowProblem(column, problem, value=roles, fix=fix) from error
    assert isinstance(text, str)
    return text


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Messages need a chat template.

    Raises:
        DataError: the tokenizer has none, or several under names and none of them is the default.
    """
    templates = tokenizer.chat_template
    if not templates:
        raise _unusable(tokenizer, "has no chat template.")
    if isinstance(templates, Mapping) and "default" not in templates:
        raise _unusable(tokenizer, f"has chat templates {', '.join(sorted(templates))}, and no default.")


def check_variables(tokenizer: PreTrainedTokenizerBase, row: ChatPreference) -> None:
    """What a row gives its template beside the messages must have a meaning there.

    Raises:
        DataError: the tokenizer has no chat template that can be used.
        RowProblem: tools that change nothing, or a variable that the template does not name.
    """
    check_chat_template(tokenizer)
    names = _names(tokenizer, row) if row.template_kwargs else set()
    for name, value in row.template_kwargs.items():
        if name not in names:
            fix = f"Remove it: dataset.remove_columns({TEMPLATE_COLUMN!r}), if no row needs the column."
            problem = f"the chat template does not read {name}{closest(name, names)}"
            raise RowProblem(TEMPLATE_COLUMN, problem, value=value, fix=fix)
    with_tools = _try_render(tokenizer, row, row.prompt, column="prompt") if row.tools else None
    if isinstance(with_tools, str) and with_tools == _try_render(
        tokenizer, replace(row, tools=()), row.prompt, column="prompt"
    ):
        fix = f"Use a tokenizer whose template knows tools, or dataset.remove_columns({TOOLS_COLUMN!r})."
        raise RowProblem(TOOLS_COLUMN, "the chat template does not read tools", value=list(row.tools), fix=fix)


def unread_keys(tokenizer: PreTrainedTokenizerBase, row: ChatPreference) -> frozenset[str]:
    """Keys of the row's messages that its template does not name, in the spelling of the row."""
    keys = {key for turn in (*row.prompt, *row.chosen, *row.rejected) for key in turn} - READ_BY_ALL
    names = _names(tokenizer, row) if keys else set()
    if names.intersection(REASONING_KEYS):  # the template gets each of them
        keys = keys.difference(REASONING_KEYS)
    return frozenset(keys - names)


def adapt_calls(tokenizer: PreTrainedTokenizerBase, row: ChatPreference) -> ChatPreference:
    """The row with the arguments of its tool calls as its template prints them: a mapping, or the text of its JSON.

    Both are tried with the same conversation and another argument. A template that refuses the mapping, or prints it
    as Python writes it, gets the text.

    Raises:
        RowProblem: the template prints the calls in neither form, or not all of them.
    """
    answers = (("chosen", row.chosen), ("rejected", row.rejected))
    calling = [(column, [*row.prompt, *answer]) for column, answer in answers if _num_calls([*row.prompt, *answer])]
    if not calling:
        return row
    tried: list[str | RowProblem] = []
    for form in (dict, _json):
        shown = form(PROBE)
        probed = [(column, _with_arguments(messages, lambda _, shown=shown: shown)) for column, messages in calling]
        texts = [_try_render(tokenizer, row, messages, column=column) for column, messages in probed]
        tried += texts
        if all(_prints(text, messages, form) for text, (_, messages) in zip(texts, calling, strict=True)):
            turns = [_with_arguments(part, form) for part in (row.prompt, row.chosen, row.rejected)]
            return replace(row, prompt=turns[0], chosen=turns[1], rejected=turns[2])
    if isinstance(tried[0], RowProblem) and isinstance(tried[-1], RowProblem):
        render(tokenizer, row, row.prompt, column="prompt")  # refused as well, if the fault is there
        raise tried[0]
    column, messages = calling[0]
    calls = next(turn["tool_calls"] for turn in messages if "tool_calls" in turn)
    fix = "Use a tokenizer whose template knows tool calls, or write them into the content."
    raise RowProblem(column, "the chat template leaves out tool calls", value=calls, fix=fix)


def check_said(
    tokenizer: PreTrainedTokenizerBase,
    row: ChatPreference,
    messages: Sequence[Message],
    text: str,
    *,
    column: str,
    first: int = 0,
) -> None:
    """What the system, the user and tools say has to reach the model, in the words of the template.

    A turn whose content is not in the text as it stands is tried with another content, in the same parts.

    Args:
        tokenizer: has the chat template.
        row: its tools and template variables.
        messages: a conversation.
        text: it, rendered.
        column: the column that is at fault.
        first: the first turn that is looked at.

    Raises:
        RowProblem: the template leaves a turn out.
    """
    for index, turn in enumerate(messages):
        said = [text_of([part]).strip() for part in as_parts(turn["content"])]
        if index < first or turn["role"] == "assistant" or all(part in text for part in said):
            continue
        others = [*messages[:index], {**turn, "content": _probed(turn["content"])}, *messages[index + 1 :]]
        probed = _try_render(tokenizer, row, others, column=column)
        if isinstance(probed, str) and probed.lower().count(PROBE_KEY) < sum(map(bool, said)):
            fix = "Move it into a turn that the template writes out, or use a tokenizer with another template."
            problem = f"the chat template leaves out the text of the {turn['role']} turn"
            raise RowProblem(column, problem, value=turn["content"], fix=fix)


def _probed(content: str | Sequence[Part]) -> str | list[Part]:
    """Another content, with images where they were."""
    if isinstance(content, str):
        return PROBE_KEY
    return [{**part, "text": PROBE_KEY} if text_of([part]).strip() else part for part in content]


def check_doubled(tokenizer: PreTrainedTokenizerBase, text: str, ends: Sequence[int], *, column: str) -> None:
    """A beginning or an end token that a text has, and that the template adds again.

    Args:
        tokenizer: knows its special tokens.
        text: a whole row as text.
        ends: where its trained turns end.
        column: the column of the answer, for errors.

    Raises:
        RowProblem: two beginning tokens at the start, or the same special token twice at the end of a turn.
    """
    bos = tokenizer.bos_token
    if isinstance(bos, str) and bos and text.startswith(bos + bos):
        fix = "Remove it from the text, or from the chat template."
        raise RowProblem("prompt", f"has the beginning token {bos} twice", value=text, fix=fix)
    for end in ends:
        turn = text[max(0, end - TAIL) : end].rstrip()
        last = next((token for token in tokenizer.all_special_tokens if turn.endswith(token)), None)
        if last and turn.removesuffix(last).rstrip().endswith(last):
            fix = "Remove it from the end of the text: it is added to every answer."
            raise RowProblem(column, f"has the end token {last} twice", value=turn, fix=fix)


def _unusable(tokenizer: PreTrainedTokenizerBase, problem: str) -> DataError:
    name = tokenizer.name_or_path or type(tokenizer).__name__
    return DataError(
        f"the rows are messages, but the tokenizer {name!r} {problem}\n"
        "Use the tokenizer of the chat (instruct) model, or set tokenizer.chat_template,\n"
        "or give prompt, chosen and rejected as text."
    )


def _try_render(
    tokenizer: PreTrainedTokenizerBase, row: ChatPreference, messages: Sequence[Message], *, column: str
) -> str | RowProblem:
    try:
        return render(tokenizer, row, messages, column=column)
    except RowProblem as problem:
        return problem


def _names(tokenizer: PreTrainedTokenizerBase, row: ChatPreference) -> set[str]:
    """Every word of the template that the row is rendered with; what it reads is among them."""
    return set(re.findall(r"\w+", tokenizer.get_chat_template(tools=_tools(row))))


def _with_reasoning(message: Message) -> dict[str, Any]:
    """The message with its reasoning under each name, since a template reads one of them."""
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), None)
    return dict(message) if reasoning is None else {**dict.fromkeys(REASONING_KEYS, reasoning), **message}


def _tools(row: ChatPreference) -> list[Any] | None:
    """None, not an empty list: some templates announce tools for any list."""
    return [dict(tool) for tool in row.tools] or None


def _json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _num_calls(messages: Sequence[Message]) -> int:
    return sum(len(turn.get("tool_calls", ())) for turn in messages)


def _with_arguments(messages: Sequence[Message], form: Callable[[Mapping[str, Any]], Any]) -> list[Message]:
    return [_with_form(turn, form) if "tool_calls" in turn else turn for turn in messages]


def _with_form(turn: Message, form: Callable[[Mapping[str, Any]], Any]) -> Message:
    calls = [
        {**call, "function": {**call["function"], "arguments": form(call["function"]["arguments"])}}
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": calls}


def _prints(text: str | RowProblem, messages: Sequence[Message], form: Callable[..., Any]) -> bool:
    """Every call has been printed, and not as Python."""
    if isinstance(text, RowProblem):
        return False
    wanted = _json(PROBE) if form is _json else PROBE_KEY
    return text.count(wanted) >= _num_calls(messages) and str(PROBE) not in text
