"""The columns of a data set: which of a given one are read, and which a prepared one has.

A data set of preferences is one of pairs (chosen and rejected) or K-wise (several graded completions of a prompt), as a
whole, by its columns; and it is one of text and messages, or of token ids. Methods that learn from single answers read
them as `burnish.data.answers` says; what they prepare are completions with labels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from datasets import Dataset, Features, Json, Value
from datasets import Sequence as ListOf

from burnish.data.answers import LABEL_COLUMN, SUPERVISED_COLUMNS
from burnish.data.errors import DataError
from burnish.data.formats import ANSWERS, CONVERSATION_COLUMN, content_columns
from burnish.data.images import DIGEST_COLUMN
from burnish.data.kinds import JUDGED, PREFERENCES, SUPERVISED
from burnish.data.kwise import (
    COMPLETIONS_COLUMN,
    GRADE_COLUMNS,
    KWISE_NUMBERS,
    KWISE_REF_COLUMN,
    KWISE_TOKEN_COLUMN,
    LABELS_COLUMN,
)
from burnish.data.numbers import NUMBER_COLUMNS, TIE_COLUMN, TOKEN_COLUMNS
from burnish.data.parts import IMAGE_COLUMNS
from burnish.data.report import COMPLETION_LENGTHS, COUNTS, PAIR_COUNTS, PROMPT_LENGTH
from burnish.registry import closest

PROMPT_COLUMN = "prompt_input_ids"
PAIR_IDS, PAIR_MASKS = ("chosen_input_ids", "rejected_input_ids"), ("chosen_loss_mask", "rejected_loss_mask")
KWISE_IDS, KWISE_MASK = "completion_input_ids", "completion_loss_mask"
TRUNCATED_COLUMN = "truncated"
SOURCE_COLUMN = "source"
JSON = "json"

OF_PREFERENCES = ("prompt", *ANSWERS, CONVERSATION_COLUMN)  # columns of content that other kinds choose themselves

INTEGER, NUMBER, IDS, MASK = Value("int64"), Value("float64"), ListOf(Value("int32")), ListOf(Value("bool"))


def is_kwise(columns: Collection[str]) -> bool:
    """Several completions of each prompt, not chosen and rejected."""
    if is_tokenized(columns):
        return KWISE_IDS in columns
    return COMPLETIONS_COLUMN in columns and not set(ANSWERS) <= set(columns)


def is_tokenized(columns: Collection[str]) -> bool:
    """The rows are token ids already."""
    return PROMPT_COLUMN in columns and (KWISE_IDS in columns or set(PAIR_IDS) <= set(columns))


def is_prepared(columns: Collection[str]) -> bool:
    """The rows are what `prepare_preferences` returns: token ids that may lack nothing."""
    has_masks = KWISE_MASK in columns or set(PAIR_MASKS) <= set(columns)
    return has_masks and {"row_id", PROMPT_COLUMN, TRUNCATED_COLUMN} <= set(columns)


def read_columns(dataset: Dataset, *, name: str, kind: str = PREFERENCES) -> list[str]:
    """The columns of a data set that are read: of its schema, optional, and refused if filled.

    Args:
        dataset: rows in any accepted schema.
        name: the data set's name in messages.
        kind: one of `kinds.ROW_KINDS`, what its rows are read as.

    Raises:
        DataError: a column is missing, or there are columns of which only one may be there.
    """
    present, features = dataset.column_names, dataset.features
    if kind != PREFERENCES:
        wanted = _OF_ANSWERS[kind](dataset, name) | {"weight"}
    else:
        wanted = _kwise_columns(dataset, name) if is_kwise(present) else _pair_columns(dataset, name)
    if kind == PREFERENCES and is_tokenized(present):
        wanted |= {PROMPT_COLUMN, *IMAGE_COLUMNS}
        wanted |= set() if isinstance(features.get(TRUNCATED_COLUMN), Value) else {TRUNCATED_COLUMN}
    else:
        wanted |= set(content_columns(present)).difference(ANSWERS if kind == PREFERENCES else OF_PREFERENCES)
    types = {column: _dtype(features.get(column)) for column in ("row_id", SOURCE_COLUMN)}
    wanted |= {column for column, kind in types.items() if "int" in kind or kind == JSON}
    return [column for column in present if column in wanted]


def split_ref_logps(dataset: Dataset, *, name: str) -> Dataset:
    """`ref_logps`, the reference's log-probs of chosen and rejected in one column, under TRL's two names.

    Raises:
        DataError: a row without two of them, or the two columns are there as well.
    """
    if "ref_logps" not in dataset.column_names or is_kwise(dataset.column_names):
        return dataset
    pairs = list(dataset.with_format(None)["ref_logps"])
    for row, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(
                f"{name}, row {row}, column 'ref_logps': {pair!r} is not two numbers. Give the reference's summed "
                "log-probs as [chosen, rejected], or the columns ref_chosen_logps and ref_rejected_logps."
            )
    columns = {"ref_chosen_logps": [pair[0] for pair in pairs], "ref_rejected_logps": [pair[1] for pair in pairs]}
    if both := [column for column in columns if column in dataset.column_names]:
        raise DataError(f"{name}: the data set has ref_logps and {', '.join(both)}: remove one of the two")
    dataset = dataset.remove_columns("ref_logps")
    for column, values in columns.items():
        dataset = dataset.add_column(column, values)  # pyright: ignore[reportCallIssue]
    return dataset


def output_features(read: Collection[str], kind: str = PREFERENCES) -> Features:
    """The columns of prepared rows and of what is counted, in order, with their types.

    They are stated, not inferred: rows that are all bad, or all whole, must not change a column's type.

    Args:
        read: the columns of the given rows that are read.
        kind: what they are read as.
    """
    features: dict[str, Any] = {"row_id": INTEGER, PROMPT_COLUMN: IDS}
    if kind != PREFERENCES:
        features |= {KWISE_IDS: ListOf(IDS), KWISE_MASK: ListOf(MASK), LABELS_COLUMN: MASK}
        features |= {"weight": NUMBER} if "weight" in read else {}
    elif is_kwise(read):
        features |= {KWISE_IDS: ListOf(IDS), KWISE_MASK: ListOf(MASK)}
        numbers = {
            "scores": ListOf(NUMBER),
            "ranks": ListOf(INTEGER),
            "weight": NUMBER,
            KWISE_REF_COLUMN: ListOf(NUMBER),
            KWISE_TOKEN_COLUMN: ListOf(ListOf(NUMBER)),
        }
        features |= {column: feature for column, feature in numbers.items() if column in read}
    else:
        for ids, mask in zip(PAIR_IDS, PAIR_MASKS, strict=True):
            features |= {ids: IDS, mask: MASK}
        for column, spellings in NUMBER_COLUMNS.items():
            if any(spelling in read for spelling in spellings):
                features[column] = NUMBER
        features |= {column: ListOf(NUMBER) for column in TOKEN_COLUMNS if column in read}
        features |= {TIE_COLUMN: Value("bool")} if TIE_COLUMN in read else {}
    features |= {SOURCE_COLUMN: INTEGER} if SOURCE_COLUMN in read else {}
    features[TRUNCATED_COLUMN] = MASK
    if any(column in read for column in IMAGE_COLUMNS):
        features[DIGEST_COLUMN] = ListOf(INTEGER)
    features |= {PROMPT_LENGTH: INTEGER, COMPLETION_LENGTHS: ListOf(INTEGER)}
    features |= dict.fromkeys((*PAIR_COUNTS, *COUNTS), INTEGER)
    return Features({**features, "ignored_keys": Value("string"), "problem": Value("string")})


def _pair_columns(dataset: Dataset, name: str) -> set[str]:
    present = dataset.column_names
    if not is_tokenized(present) and COMPLETIONS_COLUMN in present and _filled(dataset, GRADE_COLUMNS):
        raise DataError(
            f"{name}: the data set has chosen and rejected, and graded completions too.\n"
            f"Remove what is not to be trained on: dataset.remove_columns({COMPLETIONS_COLUMN!r}), or "
            f"dataset.remove_columns({list(ANSWERS)})."
        )
    required = PAIR_IDS if is_tokenized(present) else ANSWERS
    for column in required:
        if column not in present:
            raise DataError(
                f"{name}: the data set has no column {column!r}{closest(column, present)}\n"
                f"It has: {', '.join(present)}. A preference data set has prompt, chosen and rejected, or prompt, "
                f"completions and scores.\n"
                f"Rename a column: dataset.rename_column('OLD_NAME', {column!r})."
            )
    scalars = {column for column in present if _dtype(dataset.features[column]) not in ("", "null")}
    numbers = [
        next((spelling for spelling in spellings if spelling in scalars), None) for spellings in NUMBER_COLUMNS.values()
    ]
    optional = {*numbers, *scalars.intersection({TIE_COLUMN}), *_filled(dataset, TOKEN_COLUMNS)}
    return {*required, *PAIR_MASKS, *(column for column in optional if column is not None)}


def _kwise_columns(dataset: Dataset, name: str) -> set[str]:
    present = dataset.column_names
    if set(PAIR_IDS) <= set(present):
        raise DataError(f"{name}: the data set has chosen_input_ids, and {KWISE_IDS} too: remove one of the two.")
    grades = _filled(dataset, GRADE_COLUMNS)
    if len(grades) != 1:
        found = "both scores and ranks: remove one of the two" if grades else f"no scores{closest('scores', present)}"
        raise DataError(
            f"{name}: the data set has several completions in each row, and {found}\n"
            f"It has: {', '.join(present)}. Completions have the column scores, one number for each, higher is better, "
            "or the column ranks, where 1 is best."
        )
    if not is_tokenized(present) and not {"prompt", CONVERSATION_COLUMN}.intersection(present):
        raise DataError(
            f"{name}: the data set has completions, but no column 'prompt'{closest('prompt', present)}\n"
            f"It has: {', '.join(present)}. Only chosen and rejected may contain their prompt."
        )
    ids = {KWISE_IDS, KWISE_MASK} if is_tokenized(present) else {COMPLETIONS_COLUMN}
    return {*ids, *grades, *_filled(dataset, KWISE_NUMBERS)}


def _supervised_columns(dataset: Dataset, name: str) -> set[str]:
    filled = _filled(dataset, SUPERVISED_COLUMNS)
    own = [column for column in filled if column != "chosen"] or filled
    if not own:
        raise _no_answers(dataset, name, "messages, or prompt and completion, or text")
    return {*own, *(["prompt"] if {"completion", "chosen"}.intersection(own) else [])}


def _judged_columns(dataset: Dataset, name: str) -> set[str]:
    present = dataset.column_names
    if LABEL_COLUMN in present and "completion" in present:
        return {"prompt", "completion", LABEL_COLUMN}
    if not set(ANSWERS) <= set(present):
        missing = LABEL_COLUMN if "completion" in present else "completion"
        raise _no_answers(dataset, name, "prompt, completion and label, or prompt, chosen and rejected", missing)
    return {"prompt", *ANSWERS}


_OF_ANSWERS = {SUPERVISED: _supervised_columns, JUDGED: _judged_columns}


_MEANING = {"completion": "with an answer", LABEL_COLUMN: "that says which answers are good"}


def _no_answers(dataset: Dataset, name: str, wanted: str, missing: str = "completion") -> DataError:
    present = dataset.column_names
    ids = [column for column in present if column.endswith("input_ids")]
    hint = f"Rows of token ids ({ids[0]}) are not built for this method. " if ids else ""
    return DataError(
        f"{name}: the data set has no column {_MEANING[missing]}{closest(missing, present)}\n"
        f"It has: {', '.join(present)}. {hint}This method reads {wanted}.\n"
        f"Rename a column: dataset.rename_column('OLD_NAME', {missing!r})."
    )


def _filled(dataset: Dataset, columns: Sequence[str]) -> list[str]:
    """Those of the columns that are there and not null in every row."""
    return [name for name in columns if name in dataset.column_names and _dtype(dataset.features[name]) != "null"]


def _dtype(feature: Any) -> str:
    """The type of a column of single values, "json" if each row has its own; "" for lists, and where there is none."""
    if isinstance(feature, Json):
        return JSON
    return feature.dtype if isinstance(feature, Value) else ""
