r"""Where an assistant's turn begins and ends in the text of a conversation.

With `F` the whole conversation as text, a turn begins where the rendering of what is before it, generation prompt
included, stops agreeing with `F`, and ends where the rendering up to it stops agreeing with `F`. For most templates
both are prefixes of `F`. Where they are not, the template words a turn in one way while it is the last, and in another
when others follow:
- a generation prompt that opens thinking, of which `F` has no trace: a turn with another content says where the
  header ends, so that `<think>` and an answer in angle brackets have no `<` in common;
- an opener of the template's own, as an empty `<think>` block, that goes when other turns follow: the rest is found
  behind it, if everything that the row says in the turn is there.
A turn whose own words are gone cannot be told apart from the history.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from burnish.data.errors import RowProblem
from burnish.data.messages import REASONING_KEYS, Message
from burnish.data.parts import text_of
from burnish.data.prefix import common_prefix

MAX_OPENER = 200  # characters of an opener that a template puts before the last turn only
OTHER_CONTENT = "\ue000"  # of the private use area: no text begins with it
TAIL = 200

Renderer = Callable[..., str]


def turn_span(
    say: Renderer, messages: Sequence[Message], index: int, *, text: str, before: str
) -> tuple[int, int] | None:
    """The characters of a turn, or None if they cannot be told.

    Args:
        say: messages -> text; takes `open_answer`.
        messages: the conversation.
        index: the turn.
        text: the conversation as text.
        before: the turns before it as text, generation prompt included.
    """
    start = _start(say, messages, index, text=text, before=before)
    if start is None:
        return None
    end = len(text) if index == len(messages) - 1 else _end(say, messages, index, text=text, start=start)
    return (start, end) if end is not None and start < end else None


def check_last_turn(column: str, turn: Message, span: str) -> None:
    """The text of an answer has to reach the model.

    Raises:
        RowProblem: the last word of the turn's content is not in its span.
    """
    words = re.findall(r"\w+", text_of(turn["content"])[-TAIL:])
    if words and words[-1] not in span:
        fix = "Use a tokenizer whose template reads content as text."
        raise RowProblem(column, "the chat template leaves out the text of the answer", value=turn["content"], fix=fix)


def _start(say: Renderer, messages: Sequence[Message], index: int, *, text: str, before: str) -> int | None:
    start = common_prefix(before, text)
    if start == len(before):
        return start
    history = messages[:index]
    if history and start < common_prefix(before, say(history)):
        return None
    try:
        other = say([*history, {"role": "assistant", "content": OTHER_CONTENT}])
    except RowProblem:  # templates may want what this turn lacks
        return start
    return min(start, common_prefix(other, text))


def _end(say: Renderer, messages: Sequence[Message], index: int, *, text: str, start: int) -> int | None:
    alone = say(messages[: index + 1])
    same = common_prefix(alone, text)
    if same == len(alone):
        return same
    turn = messages[index]
    if same > start and _says_all(text[start:same], turn, alone):
        return same
    if same < start:
        return None
    for opener in range(1, min(MAX_OPENER, len(alone) - start)):
        if text.startswith(alone[start + opener :], start):
            end = len(alone) - opener
            return end if _says_all(text[start:end], turn, alone) else None
    return None


def _says_all(span: str, turn: Message, alone: str) -> bool:
    """Content, names of calls, and the reasoning that the template reads are all in the span."""
    reasoning = [str(turn[key]).strip() for key in REASONING_KEYS if key in turn]
    names: list[Any] = [call["function"]["name"] for call in turn.get("tool_calls", ())]
    words = [text_of(turn["content"]).strip(), *names, *(text for text in reasoning if text in alone)]
    return all(word in span for word in words)
