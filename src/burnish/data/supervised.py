"""Supervised rows, one answer to a prompt -> token ids, which of them are trained, and parcels.

`burnish.data.answers` says what rows are accepted. As in preference rows, a token is trained if all of its characters
belong to what is trained, and a chat is rendered once, whole.

Example: prompt "Sky?", completion " blue" and a tokenizer of bytes: four bytes of prompt, six trained tokens with EOS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from burnish.data.answers import answer_column, read_supervised
from burnish.data.chat import render_single
from burnish.data.encode import encode_texts, special_prefix, train_tokens
from burnish.data.errors import BadRow, RowProblem, bad_rows_error
from burnish.data.sources import load_rows
from burnish.types import TokenBatch


@dataclass(frozen=True)
class SupervisedReport:
    """What became of a data set of supervised rows.

    Attributes:
        name: the data set's name in messages.
        fingerprint: hash of all token ids and masks.
        num_rows: rows that are left.
        num_dropped: bad rows left out.
        num_cut: rows that lost tokens at their end.
        num_trained: trained tokens of all rows.
    """

    name: str
    fingerprint: str
    num_rows: int
    num_dropped: int
    num_cut: int
    num_trained: int

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report for a person: counts of zero are left out."""
        dropped = f", {self.num_dropped} bad rows dropped" if self.num_dropped else ""
        cut = f"; {self.num_cut} rows lost their end" if self.num_cut else ""
        return [
            f"{self.name}: {self.num_rows} supervised rows{dropped}, {self.num_trained} trained tokens{cut}; "
            f"fingerprint {self.fingerprint}"
        ]


@dataclass(frozen=True)
class SupervisedRow:
    """Token ids of a prompt, and of what comes behind it, with a flag for each token that is trained."""

    row_id: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]


def prepare_supervised(
    source: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Sequence[int],
    max_length: int | None,
    on_bad_row: str = "error",
    name: str = "ptx",
) -> tuple[list[SupervisedRow], SupervisedReport]:
    """Tokenise supervised rows.

    Args:
        source: whatever `load_rows` takes.
        tokenizer: the model's.
        end_ids: tokens that end an answer.
        max_length: longest row in tokens; longer ones lose their end, and are counted.
        on_bad_row: `error` names the bad rows and stops, `drop` leaves them out and counts them.
        name: the data set's name in messages.

    Raises:
        DataError: no rows, bad rows under `error`, or nothing left.
    """
    dataset = load_rows(source).with_format(None)
    prefix = special_prefix(tokenizer)
    rows: list[SupervisedRow] = []
    problems: list[BadRow] = []
    num_cut = 0
    for index, row in enumerate(dataset):
        try:
            encoded = encode_supervised(tokenizer, dict(row), row_id=index, prefix=prefix, end_ids=end_ids)
            kept = _cut(encoded, max_length)
        except RowProblem as problem:
            problems.append(problem.at(index))
            continue
        rows.append(kept)
        num_cut += kept is not encoded
    if problems and (on_bad_row == "error" or not rows):
        raise bad_rows_error(problems, name=name, num_rows=len(dataset))
    report = SupervisedReport(
        name=name,
        fingerprint=_fingerprint(rows),
        num_rows=len(rows),
        num_dropped=len(problems),
        num_cut=num_cut,
        num_trained=sum(sum(row.loss_mask) for row in rows),
    )
    return rows, report


def encode_supervised(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, Any],
    *,
    row_id: int,
    prefix: Sequence[int],
    end_ids: Sequence[int],
) -> SupervisedRow:
    """The tokens of a row. A row that is all trained has its first token as prompt: nothing comes before it.

    Raises:
        RowProblem: the row is in none of the formats, or nothing of it can be trained.
        DataError: messages, but no chat template that can be used.
    """
    rendered = render_single(tokenizer, read_supervised(row), column=answer_column(row))
    (tokens,) = encode_texts(tokenizer, [rendered.text])
    trained = train_tokens(tokenizer, rendered, tokens, prefix=prefix, end_ids=end_ids)
    start = max(trained.num_prompt, 1)
    if not any(trained.mask[start:]):
        raise RowProblem("completion", "has no token to train", value=rendered.text, fix="Give text, or drop the row.")
    return SupervisedRow(
        row_id=row_id,
        prompt_ids=tuple(trained.ids[:start]),
        completion_ids=tuple(trained.ids[start:]),
        loss_mask=tuple(trained.mask[start:]),
    )


def supervised_batch(rows: Sequence[SupervisedRow], pad_token_id: int) -> TokenBatch:
    """One parcel of all rows, each with a prompt of its own."""

    def padded(sequences: list[Tensor], fill: Any, *, side: str) -> Tensor:
        return pad_sequence(sequences, batch_first=True, padding_value=fill, padding_side=side)

    prompts = [torch.tensor(row.prompt_ids) for row in rows]
    completions = [torch.tensor(row.completion_ids) for row in rows]
    masks = [torch.tensor(row.loss_mask) for row in rows]
    return TokenBatch(
        prompt_ids=padded(prompts, pad_token_id, side="left"),
        prompt_mask=padded([torch.ones_like(ids, dtype=torch.bool) for ids in prompts], False, side="left"),
        completion_ids=padded(completions, pad_token_id, side="right"),
        completion_mask=padded([torch.ones_like(ids, dtype=torch.bool) for ids in completions], False, side="right"),
        loss_mask=padded(masks, False, side="right"),
        prompt_index=torch.arange(len(rows)),
        row_id=torch.tensor([row.row_id for row in rows]),
    )


def _cut(row: SupervisedRow, max_length: int | None) -> SupervisedRow:
    room = None if max_length is None else max_length - len(row.prompt_ids)
    if room is None or len(row.completion_ids) <= room:
        return row
    if room < 1 or not any(row.loss_mask[:room]):
        fix = "Raise max_length, or shorten the prompt."
        raise RowProblem("prompt", f"leaves no trained token within {max_length} tokens", value=room, fix=fix)
    return SupervisedRow(row.row_id, row.prompt_ids, row.completion_ids[:room], row.loss_mask[:room])


def _fingerprint(rows: Sequence[SupervisedRow]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps([row.prompt_ids, row.completion_ids, row.loss_mask]).encode())
    return digest.hexdigest()
