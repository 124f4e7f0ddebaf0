"""A preference data set -> token ids and loss masks, cached by `datasets`, and a report of what was done.

Each text, prompt and completion together, is tokenised once. A token is trained if all of its characters
belong to the completion. The prompt of a pair is what the prompt's tokens of both texts have in common; what
is left of them stays untrained at the head of the completion. Masks come from positions, never from ids, so
that pad may equal eos.

Example: prompt "Sky?", chosen " blue", rejected " red", and a tokenizer of bytes: prompt_input_ids are the
four bytes of the prompt, chosen_input_ids the five of " blue" and the EOS token, chosen_loss_mask is six
times True.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from burnish.data.encode import special_prefix
from burnish.data.errors import BadRow, DataError, bad_rows_error
from burnish.data.images import attach_images, image_columns, stamp_files, without_decoding
from burnish.data.kinds import PREFERENCES
from burnish.data.parts import IMAGE_COLUMNS
from burnish.data.records import MESSAGE_SEPARATOR, TokenRules, preference_batch, tokenized_batch
from burnish.data.report import BOOKKEEPING, DataReport, make_report
from burnish.data.schema import TRUNCATED_COLUMN, is_tokenized, output_features, read_columns, split_ref_logps
from burnish.data.sources import code_hash
from burnish.data.truncate import TruncationPolicy

BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the rows of one data set become records.

    Attributes:
        read: the columns that are read.
        function: a batch of these columns, with the rows' numbers -> a batch of records.
        tokenizer, rules: its further arguments.
    """

    read: tuple[str, ...]
    function: Callable[..., dict[str, list[Any]]]
    tokenizer: PreTrainedTokenizerBase
    rules: TokenRules

    def records(self, rows: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[dict[str, Any]]:
        """The records of a few rows, outside of a table; `problem` is filled for a bad row."""
        batch = {column: [row.get(column) for row in rows] for column in self.read}
        columns = self.function(batch, list(indices), tokenizer=self.tokenizer, rules=self.rules)
        images = {column: batch[column] for column in IMAGE_COLUMNS if column in batch}
        records = zip(*{**columns, **images}.values(), strict=True)
        return [dict(zip([*columns, *images], values, strict=True)) for values in records]


def plan_preparation(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    truncation: TruncationPolicy,
    eos_token_ids: Sequence[int],
    name: str,
    processor: ProcessorMixin | None,
    keep_template_end: bool,
    kind: str = PREFERENCES,
    whole: Collection[str] = (),
) -> Preparation:
    """What is read of a data set, and how; arguments as in `prepare_preferences`.

    Raises:
        DataError: a column is missing, or there are columns of which only one may be there.
    """
    read = read_columns(dataset, name=name, kind=kind)
    rules = TokenRules(
        truncation=truncation,
        prefix=tuple(special_prefix(tokenizer)),
        end_ids=_end_ids(tokenizer, eos_token_ids),
        code=code_hash() + stamp_files(dataset),
        processor=processor,
        keep_template_end=keep_template_end,
        kind=kind,
        whole=frozenset(whole),
    )
    function = tokenized_batch if is_tokenized(read) else preference_batch
    return Preparation(read=tuple(read), function=function, tokenizer=tokenizer, rules=rules)


def prepare_preferences(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    truncation: TruncationPolicy,
    on_bad_row: str = "error",
    eos_token_ids: Sequence[int] = (),
    num_proc: int | None = None,
    name: str = "train",
    processor: ProcessorMixin | None = None,
    keep_template_end: bool = False,
    kind: str = PREFERENCES,
    whole: Collection[str] = (),
) -> tuple[Dataset, DataReport]:
    """Tokenise a preference data set. One that has token ids already keeps them, within the same lengths.

    Args:
        dataset: rows in a schema of `burnish.data.formats` or `burnish.data.kwise`, or with `prompt_input_ids`, the
            answers' ids and, unless every answer token is trained, loss masks.
        tokenizer: the model's tokenizer.
        truncation: the lengths that a row may have.
        on_bad_row: `error` names the bad rows and stops, `drop` leaves them out and counts them.
        eos_token_ids: ids that end an answer, beside the tokenizer's own EOS.
        num_proc: processes to share the work, or None for this one.
        name: the data set's name in messages.
        processor: of a vision-language model, whose rows may have images; they stay with the prepared rows.
        keep_template_end: see `train_tokens`.
        kind: one of `ROW_KINDS`, what the rows are read as: preferences, or as `burnish.data.answers` says.
        whole: columns of supervised answers (`completion`, `messages`) whose rows are trained as a whole.

    Returns:
        Rows of row_id, prompt_input_ids; chosen_input_ids, chosen_loss_mask, rejected_input_ids, rejected_loss_mask
        and, where given, the columns of `burnish.data.numbers`; or the lists completion_input_ids,
        completion_loss_mask and scores or ranks, for other kinds labels, and weight where given; in both, source where
        given, and truncated, one for each answer: it or its prompt was cut. And the report.

    Raises:
        DataError: no rows, a missing column, bad rows under `error`, or nothing left under `drop`.
    """
    _refuse(dataset, on_bad_row, name)
    dataset = without_decoding(split_ref_logps(dataset, name=name) if kind == PREFERENCES else dataset)
    preparation = plan_preparation(
        dataset,
        tokenizer,
        truncation=truncation,
        eos_token_ids=eos_token_ids,
        name=name,
        processor=processor,
        keep_template_end=keep_template_end,
        kind=kind,
        whole=whole,
    )
    read = preparation.read
    mapped = attach_images(_map(dataset, preparation, num_proc=num_proc, name=name), dataset)
    kept, bad_rows = _split_bad_rows(mapped, on_bad_row=on_bad_row, name=name)
    ignored = [column for column in dataset.column_names if column not in read] + ignored_keys(kept["ignored_keys"])
    columns = [column for column in output_features(read, kind) if column not in BOOKKEEPING]
    trained = [column for column in columns if column != TRUNCATED_COLUMN]
    report = make_report(kept, name=name, bad_rows=bad_rows, ignored_columns=ignored, content_columns=trained)
    return kept.select_columns([*columns, *image_columns(kept)]), report


def _refuse(dataset: Dataset, on_bad_row: str, name: str) -> None:
    if on_bad_row not in ("error", "drop"):
        raise ValueError(f"on_bad_row={on_bad_row!r} is unknown; known: error, drop")
    if len(dataset) == 0:
        raise DataError(f"{name}: the data set has no rows. Check its path, split and filters.")


def _map(dataset: Dataset, preparation: Preparation, *, num_proc: int | None, name: str) -> Dataset:
    rows = dataset.with_format(None).select_columns(list(preparation.read))
    return rows.map(
        preparation.function,
        with_indices=True,
        batched=True,
        batch_size=BATCH_SIZE,
        remove_columns=rows.column_names,
        features=output_features(rows.column_names, preparation.rules.kind),
        fn_kwargs={"tokenizer": preparation.tokenizer, "rules": preparation.rules},
        num_proc=None if num_proc is None else min(num_proc, len(dataset)),
        desc=f"tokenize {name}",
    )


def _split_bad_rows(mapped: Dataset, *, on_bad_row: str, name: str) -> tuple[Dataset, list[BadRow]]:
    problems = list(mapped["problem"])
    bad_rows = [BadRow(**json.loads(problem)) for problem in problems if problem]
    if not bad_rows:
        return mapped, []
    if on_bad_row == "error" or len(bad_rows) == len(problems):
        raise bad_rows_error(bad_rows, name=name, num_rows=len(problems))
    return mapped.select([index for index, problem in enumerate(problems) if not problem]), bad_rows


def ignored_keys(of_records: Iterable[str]) -> list[str]:
    """The keys of messages that nothing reads, of the column `ignored_keys`, as `messages.KEY`."""
    filled = {keys for keys in of_records if keys}
    return sorted({f"messages.{key}" for keys in filled for key in keys.split(MESSAGE_SEPARATOR)})


def _end_ids(tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int]) -> tuple[int, ...]:
    own = tokenizer.eos_token_id
    return tuple(sorted({*eos_token_ids, *([own] if isinstance(own, int) else [])}))
