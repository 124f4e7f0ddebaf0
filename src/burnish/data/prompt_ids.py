"""Prompts that are token ids already, as scripts for TRL's PPO prepare them -> text, which rewards read as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from burnish.data.encode import special_prefix
from burnish.data.errors import BadRow, RowProblem, bad_rows_error
from burnish.data.prompts import encode_prompt

COLUMN = "input_ids"
OF_IDS = (COLUMN, "attention_mask")


def with_prompts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, name: str) -> Dataset:
    """The rows with a `prompt` in place of `input_ids`; rows that have a prompt are returned as they are.

    Args:
        dataset: rows with `prompt`, or with `input_ids` that the tokenizer made.
        tokenizer: the policy's.
        name: the data set's name in messages.

    Raises:
        DataError: ids that are not what the tokenizer makes of their text.
    """
    present = dataset.column_names
    if "prompt" in present or COLUMN not in present:
        return dataset
    texts: list[str] = []
    problems: list[BadRow] = []
    for index, row in enumerate(dataset.with_format(None)):
        try:
            texts.append(_text_of(dict(row), tokenizer))
        except RowProblem as problem:
            problems.append(problem.at(index))
    if problems:
        raise bad_rows_error(problems, name=name, num_rows=len(dataset))
    named: Dataset = dataset.add_column("prompt", texts)  # pyright: ignore[reportCallIssue]
    return named.remove_columns([column for column in OF_IDS if column in present])


def _text_of(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    ids = [int(index) for index in row[COLUMN]]
    prefix = special_prefix(tokenizer)  # comes back when the text is tokenised
    own = ids[len(prefix) :] if ids[: len(prefix)] == list(prefix) else ids
    text = str(tokenizer.decode(own, clean_up_tokenization_spaces=False))
    if not text or encode_prompt(tokenizer, {"prompt": text}) != ids:
        fix = "Give the prompt as text, in a column prompt."
        raise RowProblem(COLUMN, "are not the token ids of any text that this tokenizer reads", value=ids, fix=fix)
    return text
