"""Rows of a data set of prompts as they are read: which columns they may have, and what their prompt is; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ChatPreference, refuse_unbuilt
from burnish.data.messages import Message, check_text, is_messages, read_messages
from burnish.data.parts import IMAGE_COLUMNS
from burnish.data.plain import is_nothing
from burnish.data.tools import TEMPLATE_COLUMN, TOOLS_COLUMN, read_template_kwargs, read_tools
from burnish.registry import closest

# Keywords with which reward functions are called, so no column may have their names.
RESERVED_COLUMNS = (
    "prompts", "completions", "completion_ids", "token_texts", "trainer_state", "log_extra", "log_metric",
)  # fmt: skip


def check_columns(present: Sequence[str], name: str) -> None:
    """Refuse a data set without prompts, or with a column that reward functions could not be given.

    Raises:
        DataError: names the column.
    """
    if "prompt" not in present:
        raise DataError(
            f"{name}: the data set has no column 'prompt'{closest('prompt', present)}\nIt has: {', '.join(present)}. "
            "Rename a column: dataset.rename_column('OLD_NAME', 'prompt')."
        )
    if taken := [column for column in RESERVED_COLUMNS if column in present]:
        raise DataError(
            f"{name}: the column {taken[0]!r} has the name of an argument that reward functions get from the trainer. "
            f"Rename it: dataset.rename_column({taken[0]!r}, 'reference_{taken[0]}')."
        )
    if images := [column for column in IMAGE_COLUMNS if column in present]:
        raise DataError(
            f"{name}: rollouts with images are not built yet: dataset.remove_columns({images[0]!r}), "
            "if the prompts make sense without them"
        )


def read_prompt(row: Mapping[str, Any], ignored: set[str]) -> str | ChatPreference:
    """The prompt of a row: text, or messages with tools and variables of the template, and no answers.

    Args:
        row: has a `prompt`.
        ignored: gets the keys of messages that nothing reads.

    Raises:
        RowProblem: the row has no prompt that can be answered.
    """
    refuse_unbuilt(row)
    given, own = row["prompt"], read_template_kwargs(row.get(TEMPLATE_COLUMN))
    tools = read_tools(row.get(TOOLS_COLUMN))
    if is_messages(given):
        messages = _open_messages(read_messages("prompt", given, ignored))
        return ChatPreference(prompt=messages, chosen=(), rejected=(), tools=tools, template_kwargs=own)
    text = check_text("prompt", given)
    for column, value in ((TOOLS_COLUMN, tools), (TEMPLATE_COLUMN, own)):
        if not is_nothing(value):
            fix = "Give the prompt as messages, or remove the column."
            raise RowProblem(column, "is read by chat templates only, and the prompt is text", value=value, fix=fix)
    return text


def _open_messages(messages: list[Message]) -> list[Message]:
    if messages[-1]["role"] == "assistant":
        fix = "Remove the last turn: it is what the model is to write."
        raise RowProblem("prompt", "ends with an assistant turn", value=messages[-1], fix=fix)
    return messages
