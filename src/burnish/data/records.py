"""A batch of rows -> a batch of records: token ids, masks, counts, or what is wrong with the row.

These functions run inside `datasets.map`, in any process, and depend on their arguments alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from burnish.data.drafts import Draft, draft_completions, draft_judged, draft_preference, draft_supervised
from burnish.data.encode import TrainedTokens, encode_texts, train_tokens
from burnish.data.errors import RowProblem
from burnish.data.kinds import JUDGED, PREFERENCES, SUPERVISED
from burnish.data.kwise import (
    KWISE_REF_COLUMN,
    KWISE_TOKEN_COLUMN,
    LABELS_COLUMN,
    completion_names,
    grades_of,
    num_equal,
    row_pairs,
)
from burnish.data.numbers import REF_COLUMNS, SCORE_COLUMNS, TIE_COLUMN, TOKEN_COLUMNS, cut_token_logps
from burnish.data.placeholders import match_row_images
from burnish.data.prefix import common_prefix
from burnish.data.pretokenized import read_tokens, read_truncated
from burnish.data.report import COMPLETION_LENGTHS, COUNTS, PAIR_COUNTS, PROMPT_LENGTH
from burnish.data.schema import (
    KWISE_IDS,
    KWISE_MASK,
    PAIR_IDS,
    PAIR_MASKS,
    PROMPT_COLUMN,
    SOURCE_COLUMN,
    TRUNCATED_COLUMN,
    is_kwise,
    output_features,
)
from burnish.data.truncate import RowTokens, TruncationPolicy, truncate

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
        keep_template_end: answers keep what the chat template puts after their last token.
        kind: one of `ROW_KINDS`.
        whole: columns of supervised answers whose rows are trained as a whole.
    """

    truncation: TruncationPolicy
    prefix: tuple[int, ...]
    end_ids: tuple[int, ...]
    code: str
    processor: ProcessorMixin | None = None
    keep_template_end: bool = False
    kind: str = PREFERENCES
    whole: frozenset[str] = frozenset()

    def reader(self, columns: Mapping[str, Any]) -> Callable[..., Draft]:
        """(row, tokenizer, processor) -> `Draft`, for rows of these columns."""
        preferences = draft_completions if is_kwise(columns) else draft_preference
        supervised = partial(draft_supervised, whole=self.whole)
        return {PREFERENCES: preferences, SUPERVISED: supervised, JUDGED: draft_judged}[self.kind]


def preference_batch(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    rules: TokenRules,
) -> dict[str, list[Any]]:
    """Records of a batch of text and message rows; every text of the batch is tokenised in one call."""
    rows = _rows(batch)
    read = rules.reader(batch)
    drafts = [_attempt(read, row, tokenizer, rules.processor) for row in rows]
    sides = [side for draft in drafts if isinstance(draft, Draft) for side in draft.sides]
    encoded = iter(encode_texts(tokenizer, [side.text for side in sides]) if sides else [])
    outcomes: list[Record | RowProblem] = []
    for draft in drafts:
        if isinstance(draft, RowProblem):
            outcomes.append(draft)
            continue
        trained = [
            train_tokens(
                tokenizer,
                side,
                next(encoded),
                prefix=rules.prefix,
                end_ids=rules.end_ids,
                keep_template_end=rules.keep_template_end,
            )
            for side in draft.sides
        ]
        outcomes.append(_attempt(_drafted_record, draft, trained, rules.truncation))
    return _collect(batch, rows, indices, outcomes, kind=rules.kind)


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
    return _collect(batch, rows, indices, [_attempt(_tokenized_record, row, vocabulary, rules) for row in rows])


def _drafted_record(draft: Draft, sides: Sequence[TrainedTokens], truncation: TruncationPolicy) -> Record:
    is_alone = LABELS_COLUMN in draft.numbers and len(sides) == 1
    least = 1 if is_alone else 0  # where all is trained, nothing comes before the first token: it is the prompt
    heads = [side.ids[: max(side.num_prompt, least)] for side in sides]
    shared = min(common_prefix(heads[0], head) for head in heads)
    row = RowTokens(
        prompt=heads[0][:shared],
        completions=tuple(side.ids[shared:] for side in sides),
        masks=tuple(side.mask[shared:] for side in sides),
        names=draft.names,
        pairs=row_pairs(draft.numbers),
        num_completion_cut=(0,) * len(sides),
    )
    cut = truncate(row, truncation)
    draft.images.check_whole(row.prompt, cut.prompt, truncation)
    record = {**_row_record(row, cut, draft.numbers, is_tokenized=False), **draft.images.record}
    record["ignored_keys"] = MESSAGE_SEPARATOR.join(sorted(draft.ignored_keys))
    record["num_prompt_tokens_in_completions"] = sum(len(head) - shared for head in heads)
    for side, tokens in zip(draft.sides, sides, strict=True):
        record["num_straddling_tokens"] += tokens.num_straddling
        record["num_template_tokens_removed"] += tokens.num_template_removed
        record["num_without_eos"] += tokens.num_without_eos
        record["num_untrained_turns"] += side.num_untrained_turns
        record["num_reworded_prompts"] += side.num_reworded_prompts
    return record


def _tokenized_record(row: Mapping[str, Any], vocabulary: int, rules: TokenRules) -> Record:
    tokens, numbers = read_tokens(row, vocabulary)
    before = read_truncated(row, len(tokens.completions))
    images = match_row_images(tokens, row, processor=rules.processor)
    cut = truncate(tokens, rules.truncation)
    images.check_whole(tokens.prompt, cut.prompt, rules.truncation)
    record = {**_row_record(tokens, cut, numbers, is_tokenized=True), **images.record}
    record[TRUNCATED_COLUMN] = [now or then for now, then in zip(cut.truncated, before, strict=True)]
    for ids, mask in zip(tokens.completions, tokens.masks, strict=True):
        trained = [token for token, is_trained in zip(ids, mask, strict=True) if is_trained]
        record["num_without_eos"] += int(trained[-1] not in rules.end_ids)
    return record


def _row_record(row: RowTokens, cut: RowTokens, numbers: Mapping[str, Any], *, is_tokenized: bool) -> Record:
    """What a prepared row has, and what is counted of it.

    Args:
        row: its tokens.
        cut: the same after truncation.
        numbers: under their canonical names.
        is_tokenized: see `cut_token_logps`.
    """
    record = {**_empty_record(), **numbers, PROMPT_COLUMN: cut.prompt}
    grades, lengths = grades_of(numbers), cut.trained_lengths
    if grades is not None or LABELS_COLUMN in numbers:
        record |= {KWISE_IDS: cut.completions, KWISE_MASK: cut.masks}
    else:
        record |= zip(PAIR_IDS, cut.completions, strict=True)
        record |= zip(PAIR_MASKS, cut.masks, strict=True)
    record |= _cut_token_logps(row, cut, numbers, is_tokenized=is_tokenized)
    is_tie, is_cut = bool(numbers.get(TIE_COLUMN)), any(cut.truncated)
    record |= {
        TRUNCATED_COLUMN: cut.truncated,
        PROMPT_LENGTH: len(cut.prompt),
        COMPLETION_LENGTHS: lengths,
        "num_pairs": len(cut.pairs),
        "num_longer": sum(lengths[better] > lengths[worse] for better, worse in cut.pairs),
        "num_prompts_cut": int(cut.num_prompt_cut > 0),
        "num_prompt_tokens_cut": cut.num_prompt_cut,
        "num_completions_cut": sum(num_cut > 0 for num_cut in cut.num_completion_cut),
        "num_completion_tokens_cut": sum(cut.num_completion_cut),
        "num_untrained_tokens": sum(cut.lengths) - sum(lengths),
        "num_ties": int(is_tie),
        "num_equal_scores": 0 if grades is None else num_equal(grades),
        "num_scores_against_label": int(not is_tie and _is_against_label(numbers)),
        "num_ref_logps_of_cut_rows": int(is_cut and not numbers.keys().isdisjoint((*REF_COLUMNS, KWISE_REF_COLUMN))),
    }
    return record


def _cut_token_logps(row: RowTokens, cut: RowTokens, numbers: Mapping[str, Any], *, is_tokenized: bool) -> Record:
    """The columns of the reference's log-probs per token, if the row has them."""
    if KWISE_TOKEN_COLUMN in numbers:
        names, logps = completion_names(KWISE_TOKEN_COLUMN, len(cut.completions)), numbers[KWISE_TOKEN_COLUMN]
    elif TOKEN_COLUMNS[0] in numbers:
        names, logps = TOKEN_COLUMNS, [numbers[column] for column in TOKEN_COLUMNS]
    else:
        return {}
    kept = cut_token_logps(names, logps, given=row.lengths, kept=cut.lengths, is_tokenized=is_tokenized)
    return {KWISE_TOKEN_COLUMN: kept} if KWISE_TOKEN_COLUMN in numbers else dict(zip(TOKEN_COLUMNS, kept, strict=True))


def _is_against_label(numbers: Mapping[str, Any]) -> bool:
    chosen, rejected = (numbers.get(column, 0.0) for column in SCORE_COLUMNS)
    return chosen < rejected


def _empty_record() -> Record:
    lists = (PROMPT_COLUMN, *PAIR_IDS, *PAIR_MASKS, KWISE_IDS, KWISE_MASK, LABELS_COLUMN, TRUNCATED_COLUMN)
    counts = (PROMPT_LENGTH, *PAIR_COUNTS, *COUNTS)
    return {
        **{column: list[Any]() for column in (*lists, COMPLETION_LENGTHS)},
        **dict.fromkeys(counts, 0),
        "ignored_keys": "",
        "problem": "",
    }


def _rows(batch: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    columns = dict(batch)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _attempt(function: Callable[..., Result], *operands: Any) -> Result | RowProblem:
    try:
        return function(*operands)
    except RowProblem as problem:
        return problem


def _integer(column: str, row: Mapping[str, Any], index: int) -> int:
    """A column of integers; the number of the row if there is none."""
    if column not in row:
        return index
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, int):
        fix = "Give every row a whole number, or remove the column."
        problem = "is missing" if value is None else "is no whole number"
        raise RowProblem(column, problem, value=value, fix=fix)
    return value


def _collect(
    batch: Mapping[str, list[Any]],
    rows: Sequence[Mapping[str, Any]],
    indices: Sequence[int],
    outcomes: Sequence[Record | RowProblem],
    *,
    kind: str = PREFERENCES,
) -> dict[str, list[Any]]:
    records: list[Record] = []
    for row, index, outcome in zip(rows, indices, outcomes, strict=True):
        integers = {column: _attempt(_integer, column, row, index) for column in ("row_id", SOURCE_COLUMN)}
        problem = next((item for item in (outcome, *integers.values()) if isinstance(item, RowProblem)), None)
        if problem is not None:
            found = json.dumps(asdict(problem.at(index)))
            records.append({**_empty_record(), "row_id": index, "problem": found})
            continue
        assert isinstance(outcome, dict)
        records.append({**outcome, **integers})
    return {column: [record.get(column) for record in records] for column in output_features(list(batch), kind)}
