"""A batch of rows -> a batch of records: token ids, masks, counts, or what is wrong with the row.

These functions run inside `datasets.map`, in any process, and depend on their arguments alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from burnish.data.chat import Rendered
from burnish.data.encode import TrainedTokens, encode_texts, train_tokens
from burnish.data.errors import RowProblem
from burnish.data.formats import TextPreference, read_preference
from burnish.data.images import DIGEST_COLUMN
from burnish.data.numbers import NUMBER_COLUMNS, read_numbers
from burnish.data.parts import IMAGE_COLUMNS
from burnish.data.placeholders import WrittenImages, match_images, render_with_images
from burnish.data.prefix import common_prefix
from burnish.data.report import COUNTS, LENGTHS
from burnish.data.truncate import PairTokens, TruncationPolicy, truncate

PROMPT_COLUMN = "prompt_input_ids"
ID_COLUMNS = (PROMPT_COLUMN, "chosen_input_ids", "rejected_input_ids")
MASK_COLUMNS = ("chosen_loss_mask", "rejected_loss_mask")
MESSAGE_SEPARATOR = ","

Record = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class TokenRules:
    """What turns a row into tokens, beside the tokenizer.

    Attributes:
        truncation: the lengths that a row may have.
        prefix: ids that the tokenizer puts before a text.
        end_ids: ids that end an answer.
        code: hash of the code that does it, and of what it reads beside the rows, so that the cache is of both.
        processor: the model's, which writes images out, or None for a model of text.
    """

    truncation: TruncationPolicy
    prefix: tuple[int, ...]
    end_ids: tuple[int, ...]
    code: str
    processor: ProcessorMixin | None = None


@dataclass(frozen=True)
class Draft:
    """A row as text: chosen and rejected, its images, its numbers, and the message keys that nothing reads."""

    sides: tuple[Rendered, Rendered]
    images: WrittenImages
    numbers: Mapping[str, float]
    ignored_keys: frozenset[str]


def preference_batch(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    rules: TokenRules,
) -> dict[str, list[Any]]:
    """Records of a batch of text and message rows; every text of the batch is tokenised in one call."""
    rows = _rows(batch)
    drafts = [_attempt(draft_preference, row, tokenizer, rules.processor) for row in rows]
    sides = [side for draft in drafts if isinstance(draft, Draft) for side in draft.sides]
    encoded = iter(encode_texts(tokenizer, [side.text for side in sides]) if sides else [])
    outcomes: list[Record | RowProblem] = []
    for draft in drafts:
        if isinstance(draft, RowProblem):
            outcomes.append(draft)
            continue
        chosen, rejected = (
            train_tokens(tokenizer, side, next(encoded), prefix=rules.prefix, end_ids=rules.end_ids)
            for side in draft.sides
        )
        outcomes.append(_attempt(_preference_record, draft, chosen, rejected, rules.truncation))
    return _collect(rows, indices, outcomes)


def tokenized_batch(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    rules: TokenRules,
) -> dict[str, list[Any]]:
    """Records of a batch of rows that are token ids already; a missing mask trains the whole answer."""
    rows = _rows(batch)
    vocabulary = len(tokenizer)
    return _collect(rows, indices, [_attempt(_tokenized_record, row, vocabulary, rules) for row in rows])


def draft_preference(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None = None
) -> Draft:
    """A row as text, with its images written out.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    preference, numbers = read_preference(row), read_numbers(row)
    ignored = frozenset[str]() if isinstance(preference, TextPreference) else preference.ignored_keys
    sides, images = render_with_images(tokenizer, preference, row, processor=processor)
    return Draft(sides, images, numbers, ignored.union(*(side.unread_keys for side in sides)))


def _preference_record(
    draft: Draft, chosen: TrainedTokens, rejected: TrainedTokens, truncation: TruncationPolicy
) -> Record:
    heads = [side.ids[: side.num_prompt] for side in (chosen, rejected)]
    shared = common_prefix(heads[0], heads[1])
    pair = PairTokens(
        prompt=chosen.ids[:shared],
        completions=(chosen.ids[shared:], rejected.ids[shared:]),
        masks=(chosen.mask[shared:], rejected.mask[shared:]),
    )
    cut = truncate(pair, truncation)
    draft.images.check_whole(pair.prompt, cut.prompt, truncation)
    record = {**_pair_record(cut, draft.numbers), **draft.images.record}
    record["ignored_keys"] = MESSAGE_SEPARATOR.join(sorted(draft.ignored_keys))
    record["num_prompt_tokens_in_completions"] = sum(len(head) - shared for head in heads)
    for side, tokens in zip(draft.sides, (chosen, rejected), strict=True):
        record["num_straddling_tokens"] += tokens.num_straddling
        record["num_template_tokens_removed"] += tokens.num_template_removed
        record["num_without_eos"] += tokens.num_without_eos
        record["num_untrained_turns"] += side.num_untrained_turns
        record["num_reworded_prompts"] += side.num_reworded_prompts
    return record


def _tokenized_record(row: Mapping[str, Any], vocabulary: int, rules: TokenRules) -> Record:
    prompt, chosen, rejected = (_read_ids(column, row[column], vocabulary) for column in ID_COLUMNS)
    masks = [
        _read_mask(column, row.get(column), len(ids))
        for column, ids in zip(MASK_COLUMNS, (chosen, rejected), strict=True)
    ]
    pair = PairTokens(prompt=prompt, completions=(chosen, rejected), masks=(masks[0], masks[1]))
    images = match_images(pair.prompt, pair.completions, row, processor=rules.processor)
    cut = truncate(pair, rules.truncation)
    images.check_whole(pair.prompt, cut.prompt, rules.truncation)
    record = {**_pair_record(cut, read_numbers(row)), **images.record}
    for ids, mask in zip((chosen, rejected), masks, strict=True):
        trained = [token for token, is_trained in zip(ids, mask, strict=True) if is_trained]
        record["num_without_eos"] += int(trained[-1] not in rules.end_ids)
    return record


def _read_ids(column: str, ids: Any, vocabulary: int) -> list[int]:
    fix = f"Give a list of token ids from 0 to {vocabulary - 1}."
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise RowProblem(column, "is not a list of token ids", value=ids, fix=fix)
    for index, token in enumerate(ids):
        if not 0 <= token < vocabulary:
            raise RowProblem(column, f"token {index} is not in the tokenizer's vocabulary", value=token, fix=fix)
    return ids


def _read_mask(column: str, mask: Any, length: int) -> list[bool]:
    if mask is None:
        return [True] * length
    if not isinstance(mask, list) or len(mask) != length or not all(item in (0, 1) for item in mask):
        fix = f"Give True or False for each of {length} answer tokens, or remove the column to train all."
        raise RowProblem(column, f"is no mask of {length} tokens", value=mask, fix=fix)
    return [bool(item) for item in mask]


def _pair_record(pair: PairTokens, numbers: Mapping[str, float]) -> Record:
    trained = [sum(mask) for mask in pair.masks]
    record = _empty_record(numbers)
    record.update(zip(ID_COLUMNS, (pair.prompt, *pair.completions), strict=True))
    record.update(zip(MASK_COLUMNS, pair.masks, strict=True))
    record.update(zip(LENGTHS, (len(pair.prompt), *trained), strict=True))
    record.update(
        num_prompts_cut=int(pair.num_prompt_cut > 0),
        num_prompt_tokens_cut=pair.num_prompt_cut,
        num_completions_cut=sum(cut > 0 for cut in pair.num_completion_cut),
        num_completion_tokens_cut=sum(pair.num_completion_cut),
        num_untrained_tokens=sum(map(len, pair.completions)) - sum(trained),
    )
    return record


def _empty_record(numbers: Mapping[str, float]) -> Record:
    lists: Record = {column: [] for column in (*ID_COLUMNS, *MASK_COLUMNS)}
    return {**lists, **dict.fromkeys((*LENGTHS, *COUNTS), 0), "ignored_keys": "", "problem": "", **numbers}


def _rows(batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    columns = dict(batch)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _attempt(function: Callable[..., Result], *operands: Any) -> Result | RowProblem:
    try:
        return function(*operands)
    except RowProblem as problem:
        return problem


def _row_id(row: Mapping[str, Any], index: int) -> int:
    if "row_id" not in row:
        return index
    if row["row_id"] is None:
        fix = "Give every row a whole number, or remove the column to number the rows from 0."
        raise RowProblem("row_id", "is missing", value=None, fix=fix)
    return row["row_id"]


def _collect(
    rows: Sequence[Mapping[str, Any]], indices: Sequence[int], outcomes: Sequence[Record | RowProblem]
) -> dict[str, list[Any]]:
    records: list[Record] = []
    for row, index, outcome in zip(rows, indices, outcomes, strict=True):
        row_id = _attempt(_row_id, row, index)
        problem = next((item for item in (outcome, row_id) if isinstance(item, RowProblem)), None)
        if problem is not None:
            bad = _empty_record({})
            records.append({**bad, "row_id": index, "problem": json.dumps(asdict(problem.at(index)))})
            continue
        assert isinstance(outcome, dict)
        records.append({**outcome, "row_id": row_id})
    given = [name for name, spellings in NUMBER_COLUMNS.items() if any(s in row for s in spellings for row in rows)]
    with_images = [DIGEST_COLUMN] if any(column in row for column in IMAGE_COLUMNS for row in rows) else []
    columns = dict.fromkeys([*_empty_record({}), "row_id", *given, *with_images])
    return {column: [record.get(column) for record in records] for column in columns}
