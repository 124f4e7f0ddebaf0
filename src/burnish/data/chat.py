r"""A row -> the text that the model sees, and the ranges of its characters that are trained.

Messages go through the tokenizer's chat template. With `F` the whole conversation as text, the turn `j` of
the completion begins where the rendering of everything before it, generation prompt included, stops agreeing
with `F`, and ends where the rendering of everything up to it stops agreeing with `F`. For most templates the
former is a prefix of `F`. Where it is not (templates that open or strip thinking), the common prefix
decides; a turn that cannot be told apart from the history is not trained. Both cases are counted.

Example: ChatML, one question "a" and the answer "b": text
`<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n`, of which `b<|im_end|>\n` is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ChatPreference, Message, TextPreference, common_prefix


@dataclass(frozen=True)
class Rendered:
    """One completion behind its prompt, as text.

    Attributes:
        text: what the tokenizer gets.
        spans: the trained ranges of characters, in order; each ends with the end of a turn.
        is_chat: the text came out of a chat template, which has put every special token itself.
        num_untrained_turns: assistant turns of the completion without a range of their own.
        num_reworded_prompts: 1 if the prompt's own rendering is no prefix of the text.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    is_chat: bool
    num_untrained_turns: int = 0
    num_reworded_prompts: int = 0


def render_preference(
    tokenizer: PreTrainedTokenizerBase, row: TextPreference | ChatPreference
) -> tuple[Rendered, Rendered]:
    """The chosen and the rejected text of a row.

    Raises:
        DataError: messages, but no chat template.
        RowProblem: the template refuses the row, or no turn of an answer can be trained.
    """
    if isinstance(row, TextPreference):
        return render_text(row.prompt, row.chosen), render_text(row.prompt, row.rejected)
    opening = render(tokenizer, row.prompt, column="prompt", open_answer=True)
    return (
        render_chat(tokenizer, row.prompt, row.chosen, column="chosen", opening=opening),
        render_chat(tokenizer, row.prompt, row.rejected, column="rejected", opening=opening),
    )


def render_text(prompt: str, completion: str) -> Rendered:
    """Text stays as it is; the completion is trained.

    >>> render_text("Sky? ", "blue").spans
    ((5, 9),)
    """
    end = len(prompt) + len(completion)
    return Rendered(text=prompt + completion, spans=((len(prompt), end),), is_chat=False)


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    *,
    column: str,
    opening: str,
) -> Rendered:
    """A conversation, of which the assistant's turns after the prompt are trained.

    Args:
        tokenizer: has the chat template.
        prompt: the turns before the completion.
        completion: the turns after it; the first and the last are the assistant's.
        column: the completion's column, for errors.
        opening: the rendering of the prompt with the generation prompt.

    Raises:
        RowProblem: the template refuses the conversation, or no turn can be trained.
    """
    messages = [*prompt, *completion]
    text = render(tokenizer, messages, column=column)
    spans: list[tuple[int, int]] = []
    num_untrained = 0
    for index, turn in enumerate(completion, start=len(prompt)):
        if turn["role"] != "assistant":
            continue
        before = (
            opening if index == len(prompt) else render(tokenizer, messages[:index], column=column, open_answer=True)
        )
        start = common_prefix(before, text)
        if start < len(before):
            history = render(tokenizer, messages[:index], column=column)
            start = -1 if start < common_prefix(before, history) else start
        is_last = index == len(messages) - 1
        end = len(text) if is_last else common_prefix(render(tokenizer, messages[: index + 1], column=column), text)
        if 0 <= start < end:
            spans.append((start, end))
        else:
            num_untrained += 1
    if not spans:
        fix = "Use a template that renders the turns of the prompt the same way with and without an answer."
        problem = "no turn can be trained: the chat template rewrites the turns before the answer"
        raise RowProblem(column, problem, value=completion[-1]["content"], fix=fix)
    reworded = int(not text.startswith(opening))
    return Rendered(text, tuple(spans), True, num_untrained, reworded)


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, column: str, open_answer: bool = False
) -> str:
    """Messages as text; `open_answer` adds the header of the assistant's turn.

    Raises:
        DataError: the tokenizer has no chat template.
        RowProblem: the template refuses the messages.
    """
    check_chat_template(tokenizer)
    conversation = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=open_answer)
    except (TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        fix = "Change the turns to what the template allows, or give the tokenizer another template."
        raise RowProblem(column, f"the chat template refuses the turns: {error}", value=roles, fix=fix) from error
    assert isinstance(text, str)
    return text


def check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Messages need a chat template.

    Raises:
        DataError: the tokenizer has none.
    """
    if tokenizer.chat_template:
        return
    name = tokenizer.name_or_path or type(tokenizer).__name__
    raise DataError(
        f"the rows are messages, but the tokenizer {name!r} has no chat template.\n"
        "Use the tokenizer of the chat (instruct) model, or set tokenizer.chat_template,\n"
        "or give prompt, chosen and rejected as text."
    )
