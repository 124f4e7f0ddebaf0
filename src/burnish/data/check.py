"""Whether rows can be trained on, as far as it shows without a tokenizer; imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset

from burnish.data.answers import read_judged, read_supervised
from burnish.data.errors import BadRow, RowProblem
from burnish.data.formats import ChatPreference, TextPreference, read_preference
from burnish.data.images import place_images, read_images, refuse_images, without_decoding
from burnish.data.kinds import JUDGED, PREFERENCES, SUPERVISED
from burnish.data.kwise import first_equals, read_completions, read_kwise_numbers, read_twos
from burnish.data.numbers import REF_COLUMNS, TOKEN_COLUMNS, read_numbers, read_weight
from burnish.data.parts import text_of
from burnish.data.pretokenized import read_tokens, read_truncated
from burnish.data.prompt_rows import check_columns, read_prompt
from burnish.data.schema import is_kwise, is_tokenized, read_columns, split_ref_logps
from burnish.data.truncate import TruncationPolicy, truncate

MAX_ID = 2**31 - 1  # ids are stored as int32
CHARACTERS_PER_TOKEN = 4  # of ASCII text and usual vocabularies; any other character counts as a token
TOKENS_PER_TURN = 5  # that a chat template puts around a message, its role included


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """What rows must be, beside readable.

    Attributes:
        truncation: the lengths that a row of token ids may have.
        vocabulary: ids are below it, or None if it is not known.
        reads_images: whether the model does; None if it is not known.
    """

    truncation: TruncationPolicy = TruncationPolicy()
    vocabulary: int | None = None
    reads_images: bool | None = None


@dataclass(frozen=True)
class RowCheck:
    """What became of checked rows.

    Attributes:
        forms: how many rows of each form.
        bad_rows: rows that cannot be trained on.
        prompt_tokens, answer_tokens: the longest, exact for token ids, else estimated by `estimate_tokens`.
        num_answers: the most answers to a prompt.
        has_reference: the rows bring the reference's log-probs.
        ignored_columns: columns that nothing reads.
    """

    forms: Mapping[str, int]
    bad_rows: tuple[BadRow, ...]
    prompt_tokens: int
    answer_tokens: int
    num_answers: int
    has_reference: bool
    ignored_columns: tuple[str, ...]


@dataclass(frozen=True)
class _Read:
    """A row that was read: its form, the tokens of its prompt and of its longest answer, and its answers."""

    form: str
    prompt: int
    answer: int
    num_answers: int = 2


def check_preferences(
    rows: Dataset, indices: Sequence[int], *, name: str, rules: RowRules, kind: str = PREFERENCES
) -> RowCheck:
    """Read each row of preferences, or of single answers, as training will.

    Args:
        rows: in any accepted schema.
        indices: the number of each row in its source, for messages.
        name: the data set's name in messages.
        rules: what is known of model and options.
        kind: one of `ROW_KINDS`.

    Raises:
        DataError: a column is missing, or columns that contradict each other.
    """
    rows = without_decoding(split_ref_logps(rows, name=name) if kind == PREFERENCES else rows)
    columns, read_row = read_columns(rows, name=name, kind=kind), READ_ROW[kind]
    bad_rows: list[BadRow] = []
    good: list[_Read] = []
    for index, row in zip(indices, rows.select_columns(columns), strict=True):
        try:
            assert isinstance(row, dict)
            good.append(read_row(row, rules))
        except RowProblem as problem:
            bad_rows.append(problem.at(index))
    return RowCheck(
        forms=dict(Counter(read.form for read in good)),
        bad_rows=tuple(bad_rows),
        prompt_tokens=max((read.prompt for read in good), default=0),
        answer_tokens=max((read.answer for read in good), default=0),
        num_answers=max((read.num_answers for read in good), default=0),
        has_reference=not {*REF_COLUMNS, *TOKEN_COLUMNS}.isdisjoint(columns),
        ignored_columns=tuple(sorted(set(rows.column_names) - set(columns))),
    )


def check_prompts(rows: Dataset, indices: Sequence[int], *, name: str) -> RowCheck:
    """Read each row of a data set of prompts as training will; arguments and errors as in `check_preferences`."""
    check_columns(rows.column_names, name)
    bad_rows: list[BadRow] = []
    good: list[_Read] = []
    for index, row in zip(indices, rows, strict=True):
        try:
            assert isinstance(row, dict)
            prompt = read_prompt(row, set())
            form, part = ("text", prompt) if isinstance(prompt, str) else ("messages", prompt.prompt)
            good.append(_Read(form, _num_tokens(part), 0, 1))
        except RowProblem as problem:
            bad_rows.append(problem.at(index))
    return RowCheck(
        forms=dict(Counter(read.form for read in good)),
        bad_rows=tuple(bad_rows),
        prompt_tokens=max((read.prompt for read in good), default=0),
        answer_tokens=0,
        num_answers=1,
        has_reference=False,
        ignored_columns=(),
    )


def _read_row(row: Mapping[str, Any], rules: RowRules) -> _Read:
    if is_tokenized(row):
        return _read_ids(row, rules)
    if is_kwise(row):
        return _read_graded(row, rules)
    preference = read_preference(row)
    read_numbers(row)
    _check_images(preference, row, rules)
    return _Read(_form(preference), *_sizes(preference))


def _read_supervised_row(row: Mapping[str, Any], rules: RowRules) -> _Read:
    del rules
    answer = read_supervised(row)
    read_weight(row)
    refuse_images(answer, row)
    return _Read(_form(answer), *_sizes(answer), num_answers=1)


def _read_judged_row(row: Mapping[str, Any], rules: RowRules) -> _Read:
    answers, labels = read_judged(row)
    read_weight(row)
    if len(labels) > 1:
        _check_images(answers, row, rules)
    else:
        refuse_images(answers, row)
    return _Read(_form(answers), *_sizes(answers), num_answers=len(labels))


READ_ROW = {PREFERENCES: _read_row, SUPERVISED: _read_supervised_row, JUDGED: _read_judged_row}


def _form(read: TextPreference | ChatPreference) -> str:
    return "text" if isinstance(read, TextPreference) else "messages"


def _read_ids(row: Mapping[str, Any], rules: RowRules) -> _Read:
    tokens, _ = read_tokens(row, rules.vocabulary or MAX_ID)
    read_truncated(row, len(tokens.completions))
    if rules.reads_images is False:
        refuse_images(None, row)
    cut = truncate(tokens, rules.truncation)
    return _Read("token ids", len(cut.prompt), max(cut.lengths), len(cut.completions))


def _read_graded(row: Mapping[str, Any], rules: RowRules) -> _Read:
    completions = read_completions(row)
    read_kwise_numbers(row, len(completions))
    sizes: list[tuple[int, int]] = []
    for _, pair, preference in read_twos(row, sorted(set(first_equals(completions)))):
        _check_images(preference, pair, rules)
        sizes.append(_sizes(preference))
    return _Read("graded answers", sizes[0][0], max(answer for _, answer in sizes), len(completions))


def _check_images(preference: TextPreference | ChatPreference, row: Mapping[str, Any], rules: RowRules) -> None:
    if rules.reads_images is False:
        refuse_images(preference, row)
    images = read_images(row)
    if isinstance(preference, ChatPreference):
        place_images(preference, len(images))


def _sizes(preference: TextPreference | ChatPreference) -> tuple[int, int]:
    """Tokens of the prompt and of the longer answer, estimated."""
    prompt, *answers = map(_num_tokens, (preference.prompt, preference.chosen, preference.rejected))
    return prompt, max(answers)


def _num_tokens(part: Any) -> int:
    if isinstance(part, str):
        return estimate_tokens(part)
    return sum(estimate_tokens(text_of(turn["content"])) + TOKENS_PER_TURN for turn in part)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is.

    >>> estimate_tokens("12345678"), estimate_tokens("四个字母")
    (2, 4)
    """
    num_wide = 0 if text.isascii() else sum(character > "\x7f" for character in text)
    return num_wide + -(-(len(text) - num_wide) // CHARACTERS_PER_TOKEN)


def within(check: RowCheck, truncation: TruncationPolicy) -> RowCheck:
    """The check with its longest lengths cut to what a row may have."""
    prompt, answer = check.prompt_tokens, check.answer_tokens
    limits = truncation.max_prompt_length, truncation.max_completion_length
    prompt, answer = (
        length if limit is None else min(length, limit) for length, limit in zip((prompt, answer), limits, strict=True)
    )
    if truncation.max_length is not None and prompt + answer > truncation.max_length:
        prompt = min(prompt, truncation.max_length - 1)
        answer = truncation.max_length - prompt
    return replace(check, prompt_tokens=prompt, answer_tokens=answer)
