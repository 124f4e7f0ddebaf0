r"""A row -> the text that the model sees, and the ranges of its characters that are trained.

Messages go through the tokenizer's chat template (`burnish.data.template`); of the turns behind the prompt the
assistant's are trained (`burnish.data.turns` says where they begin and end). A turn that the template rewrites when
others follow, so that it cannot be told apart from the history, is not trained and counted.

Example: ChatML, one question "a" and the answer "b": text
`<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n`, of which `b<|im_end|>\n` is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from burnish.data.errors import RowProblem
from burnish.data.formats import ChatPreference, TextPreference
from burnish.data.messages import Message
from burnish.data.template import adapt_calls, check_doubled, check_said, check_variables, render, unread_keys
from burnish.data.turns import check_last_turn, turn_span


@dataclass(frozen=True)
class Rendered:
    """One completion behind its prompt, as text.

    Attributes:
        text: what the tokenizer gets.
        spans: the trained ranges of characters, in order; each ends with the end of a turn.
        is_chat: the text came out of a chat template, which has put every special token itself.
        num_untrained_turns: assistant turns of the completion without a range of their own.
        num_reworded_prompts: 1 if the prompt's own rendering is no prefix of the text.
        unread_keys: keys of messages that the chat template does not read.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    is_chat: bool
    num_untrained_turns: int = 0
    num_reworded_prompts: int = 0
    unread_keys: frozenset[str] = frozenset()


def render_preference(
    tokenizer: PreTrainedTokenizerBase, row: TextPreference | ChatPreference
) -> tuple[Rendered, Rendered]:
    """The chosen and the rejected text of a row.

    Raises:
        DataError: messages, but no chat template that can be used.
        RowProblem: the template refuses the row or does not read what the row gives it, no turn of an answer can be
            trained, or a token that belongs there once is there twice.
    """
    if isinstance(row, TextPreference):
        sides = render_text(row.prompt, row.chosen), render_text(row.prompt, row.rejected)
    else:
        sides = render_answers(tokenizer, row, ("chosen", "rejected"))
    for column, side in zip(("chosen", "rejected"), sides, strict=True):
        check_doubled(tokenizer, side.text, [end for _, end in side.spans], column=column)
    return sides[0], sides[1]


def render_single(
    tokenizer: PreTrainedTokenizerBase, row: TextPreference | ChatPreference, *, column: str, is_whole: bool = False
) -> Rendered:
    """The text of a row of one answer, `chosen`.

    Args:
        tokenizer: has the chat template.
        row: in canonical form.
        column: of the answer, for errors.
        is_whole: the prompt and the turns of others are trained too.

    Raises:
        DataError, RowProblem: as in `render_preference`.
    """
    if isinstance(row, TextPreference):
        side = render_text(row.prompt, row.chosen)
    else:
        (side,) = render_answers(tokenizer, row, (column,))
    check_doubled(tokenizer, side.text, [end for _, end in side.spans], column=column)
    return replace(side, spans=((0, len(side.text)),)) if is_whole else side


def render_answers(
    tokenizer: PreTrainedTokenizerBase, row: ChatPreference, columns: Sequence[str]
) -> tuple[Rendered, ...]:
    """The answers of a row of messages behind its prompt; `columns` is what errors call them, chosen first."""
    check_variables(tokenizer, row)
    row = adapt_calls(tokenizer, row)
    opening, unread = open_prompt(tokenizer, row), unread_keys(tokenizer, row)
    return tuple(
        replace(render_chat(tokenizer, row, answer, column=column, opening=opening), unread_keys=unread)
        for column, answer in zip(columns, (row.chosen, row.rejected), strict=False)
    )


def open_prompt(tokenizer: PreTrainedTokenizerBase, row: ChatPreference) -> str:
    """The prompt of a row with the header of the answer, as the model gets it to generate.

    Raises:
        DataError: no chat template that can be used.
        RowProblem: the template refuses the prompt, or leaves the text of a turn out.
    """
    opening = render(tokenizer, row, row.prompt, column="prompt", open_answer=True)
    check_said(tokenizer, row, row.prompt, opening, column="prompt")
    return opening


def render_text(prompt: str, completion: str) -> Rendered:
    """Text stays as it is; the completion is trained.

    >>> render_text("Sky? ", "blue").spans
    ((5, 9),)
    """
    end = len(prompt) + len(completion)
    return Rendered(text=prompt + completion, spans=((len(prompt), end),), is_chat=False)


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    row: ChatPreference,
    completion: Sequence[Message],
    *,
    column: str,
    opening: str,
) -> Rendered:
    """A conversation, of which the assistant's turns after the prompt are trained.

    Args:
        tokenizer: has the chat template.
        row: its prompt, tools and template variables.
        completion: the turns after the prompt; the first and the last are the assistant's.
        column: the completion's column, for errors.
        opening: the rendering of the prompt with the generation prompt.

    Raises:
        RowProblem: the template refuses the conversation, or no turn can be trained.
    """
    num_prompt, messages = len(row.prompt), [*row.prompt, *completion]
    say = partial(render, tokenizer, row, column=column)
    text = say(messages)
    check_said(tokenizer, row, messages, text, column=column, first=num_prompt)
    spans: list[tuple[int, int]] = []
    num_untrained = 0
    for index in range(num_prompt, len(messages)):
        if messages[index]["role"] != "assistant":
            continue
        before = opening if index == num_prompt else say(messages[:index], open_answer=True)
        span = turn_span(say, messages, index, text=text, before=before)
        if span is None:
            num_untrained += 1
            continue
        spans.append(span)
        if index == len(messages) - 1:
            check_last_turn(column, messages[index], text[slice(*span)])
    if not spans:
        fix = "Use a template that renders the turns of the prompt the same way with and without an answer."
        problem = "no turn can be trained: the chat template rewrites the turns before the answer"
        raise RowProblem(column, problem, value=completion[-1]["content"], fix=fix)
    reworded = int(not text.startswith(opening))
    return Rendered(text, tuple(spans), True, num_untrained, reworded)
