"""A data set of prompts -> token ids to answer, with every other column kept for the reward functions.

A row has a `prompt`: text, which the model continues as it is, or messages, which go through the chat template with
the header of the answer. `tools` and `chat_template_kwargs` are read as in preference rows.

Example: prompt "Sky?" and a tokenizer of bytes: prompt_input_ids are its four bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from burnish.data.chat import open_prompt
from burnish.data.encode import special_prefix
from burnish.data.errors import BadRow, DataError, RowProblem, bad_rows_error
from burnish.data.prompt_rows import check_columns, read_prompt
from burnish.data.report import NUM_LISTED_BAD_ROWS
from burnish.data.schema import PROMPT_COLUMN


@dataclass(frozen=True)
class PromptReport:
    """What became of a data set of prompts.

    Attributes:
        name: the data set's name in messages: train, eval.
        fingerprint: hash of prompt ids and all other columns, in order.
        num_rows: rows that are left.
        num_dropped: bad rows left out.
        bad_rows: the first of them.
        num_prompts_cut: prompts that lost their start to `max_prompt_length`.
        num_prompt_tokens_cut: tokens that they lost.
        mean_length, max_length: of the prompts, in tokens.
        columns: what reward functions get beside prompts and completions.
        ignored_keys: keys of messages that nothing reads.
    """

    name: str
    fingerprint: str
    num_rows: int
    num_dropped: int
    bad_rows: tuple[BadRow, ...]
    num_prompts_cut: int
    num_prompt_tokens_cut: int
    mean_length: float
    max_length: int
    columns: tuple[str, ...]
    ignored_keys: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for a person: counts of zero are left out."""
        dropped = f", {self.num_dropped} bad rows dropped" if self.num_dropped else ""
        lines = [
            f"{self.name}: {self.num_rows} prompts{dropped}; fingerprint {self.fingerprint}",
            f"  mean tokens: prompt {self.mean_length:.1f} (max {self.max_length})",
        ]
        if self.num_prompts_cut:
            lines.append(
                f"  {self.num_prompts_cut} prompts lost their first {self.num_prompt_tokens_cut} tokens "
                "to max_prompt_length"
            )
        if self.columns:
            lines.append(f"  columns for the reward functions: {', '.join(self.columns)}")
        lines += [f"  dropped {bad}" for bad in self.bad_rows[:3]]
        if self.ignored_keys:
            lines.append(f"  not read: {', '.join(f'messages.{key}' for key in self.ignored_keys)}")
        return lines


def prepare_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    on_bad_row: str = "error",
    name: str = "train",
) -> tuple[Dataset, PromptReport]:
    """Tokenise the prompts of a data set.

    Args:
        dataset: rows with a `prompt`, text or messages; other columns are kept.
        tokenizer: the model's tokenizer.
        max_prompt_length: longer prompts lose their start, and are counted.
        template_kwargs: variables of the chat template for rows that do not set them.
        on_bad_row: `error` names the bad rows and stops, `drop` leaves them out and counts them.
        name: the data set's name in messages.

    Returns:
        The rows with `row_id` and `prompt_input_ids`, and the report.

    Raises:
        DataError: no rows, no column `prompt`, a column with a reserved name, bad rows under `error`, or nothing left.
    """
    check_prompt_columns(dataset, name)
    plain = dataset.with_format(None)
    ignored: set[str] = set()
    encoded, problems = _encode_rows(plain, tokenizer, template_kwargs or {}, ignored)
    kept, ids = list(encoded), list(encoded.values())
    if problems and (on_bad_row == "error" or not kept):
        raise bad_rows_error(problems, name=name, num_rows=len(dataset))
    cut = [sequence if max_prompt_length is None else sequence[-max_prompt_length:] for sequence in ids]
    columns = [column for column in dataset.column_names if column not in ("prompt", "row_id", PROMPT_COLUMN)]
    prepared = plain if len(kept) == len(plain) else plain.select(kept)
    prepared = prepared.remove_columns([c for c in ("row_id", PROMPT_COLUMN) if c in prepared.column_names])
    prepared = prepared.add_column("row_id", kept).add_column(PROMPT_COLUMN, cut)  # pyright: ignore[reportCallIssue]
    lost = [len(before) - len(after) for before, after in zip(ids, cut, strict=True)]
    lengths = [len(sequence) for sequence in cut]
    report = PromptReport(
        name=name,
        fingerprint=_fingerprint(prepared),
        num_rows=len(prepared),
        num_dropped=len(problems),
        bad_rows=tuple(problems[:NUM_LISTED_BAD_ROWS]),
        num_prompts_cut=sum(number > 0 for number in lost),
        num_prompt_tokens_cut=sum(lost),
        mean_length=sum(lengths) / len(lengths),
        max_length=max(lengths),
        columns=tuple(columns),
        ignored_keys=tuple(sorted(ignored)),
    )
    return prepared, report


def _encode_rows(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any], ignored: set[str]
) -> tuple[dict[int, list[int]], list[BadRow]]:
    """The token ids of each sound row by its index, and the bad rows."""
    encoded: dict[int, list[int]] = {}
    problems: list[BadRow] = []
    for index, row in enumerate(dataset):
        try:
            encoded[index] = encode_prompt(tokenizer, dict(row), template_kwargs=template_kwargs, ignored=ignored)
        except RowProblem as problem:
            problems.append(problem.at(index))
    return encoded, problems


def check_prompt_columns(dataset: Dataset, name: str) -> None:
    """Refuse a data set that has no rows, no prompts, or a column that reward functions could not be given.

    Raises:
        DataError: names the column.
    """
    if len(dataset) == 0:
        raise DataError(f"{name}: the data set has no rows. Check its path, split and filters.")
    check_columns(dataset.column_names, name)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, Any],
    *,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    ignored: set[str] | None = None,
) -> list[int]:
    """The token ids of a row's prompt, as the model gets it to answer.

    Args:
        tokenizer: the model's.
        row: has a `prompt`.
        template_kwargs: variables of the chat template that the row does not set.
        ignored: gets the keys of messages that nothing reads.

    Raises:
        RowProblem: the row has no prompt that can be answered.
    """
    prompt = read_prompt(row, set() if ignored is None else ignored)
    if isinstance(prompt, str):
        prefix = special_prefix(tokenizer)
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        ids = ids if list(ids[: len(prefix)]) == list(prefix) else [*prefix, *ids]
    else:
        chat = replace(prompt, template_kwargs={**template_kwargs, **prompt.template_kwargs})
        ids = tokenizer(open_prompt(tokenizer, chat), add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise RowProblem("prompt", "has no token", value=row["prompt"], fix="Give text that the tokenizer knows.")
    return list(ids)


def _fingerprint(prepared: Dataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in prepared:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
