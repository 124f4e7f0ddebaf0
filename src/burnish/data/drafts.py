"""A row of text or messages -> the texts of its completions, each behind the prompt, not yet tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from burnish.data.answers import answer_column, read_judged, read_supervised
from burnish.data.chat import Rendered, render_single
from burnish.data.formats import ANSWERS, ChatPreference, TextPreference, read_preference
from burnish.data.images import refuse_images
from burnish.data.kwise import (
    COMPLETIONS_COLUMN,
    LABELS_COLUMN,
    completion_names,
    first_equals,
    naming_completions,
    read_completions,
    read_kwise_numbers,
    read_twos,
)
from burnish.data.numbers import read_numbers, read_weight
from burnish.data.placeholders import WrittenImages, render_with_images


@dataclass(frozen=True)
class Draft:
    """A row as text.

    Attributes:
        sides: its completions, each behind the prompt.
        names: what errors call each completion.
        images: of the prompt.
        numbers: of the row, under their canonical names.
        ignored_keys: keys of messages that nothing reads.
    """

    sides: tuple[Rendered, ...]
    names: tuple[str, ...]
    images: WrittenImages
    numbers: Mapping[str, Any]
    ignored_keys: frozenset[str]


def draft_preference(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None = None
) -> Draft:
    """A row of chosen and rejected as text, with its images written out.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    preference, numbers = read_preference(row), read_numbers(row)
    sides, images = render_with_images(tokenizer, preference, row, processor=processor)
    return Draft(sides, ANSWERS, images, numbers, _unread_keys(preference, sides))


def draft_completions(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None = None
) -> Draft:
    """A row of several completions as text, with its images written out. Equal completions are read once.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    completions = read_completions(row)
    numbers, same = read_kwise_numbers(row, len(completions)), first_equals(completions)
    sides: dict[int, Rendered] = {}
    ignored, images = frozenset[str](), WrittenImages()
    for (first, second), pair, preference in read_twos(row, sorted(set(same))):
        with naming_completions(first, second):
            rendered, images = render_with_images(tokenizer, preference, pair, processor=processor)
        sides |= zip((first, second), rendered, strict=True)
        ignored |= _unread_keys(preference, rendered)
    names = completion_names(COMPLETIONS_COLUMN, len(completions))
    return Draft(tuple(sides[place] for place in same), names, images, numbers, ignored)


def draft_supervised(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    processor: ProcessorMixin | None = None,
    *,
    whole: Collection[str] = (),
) -> Draft:
    """A row of one answer to imitate as text; its only label says that the answer is desirable.

    Args:
        row: in a schema of `burnish.data.answers`.
        tokenizer: has the chat template.
        processor: of a vision-language model; a row of one answer has no images.
        whole: columns whose rows are trained with their prompt and the turns of others.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    del processor
    answer, column = read_supervised(row), answer_column(row)
    refuse_images(answer, row)
    side = render_single(tokenizer, answer, column=column, is_whole=column in whole)
    numbers = {**read_weight(row), LABELS_COLUMN: [True]}
    return Draft((side,), (column,), WrittenImages(), numbers, _unread_keys(answer, (side,)))


def draft_judged(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None = None
) -> Draft:
    """A row of one judged answer, or of a desirable and an undesirable one, as text.

    Raises:
        RowProblem: the row cannot be trained on.
    """
    answers, labels = read_judged(row)
    if len(labels) > 1:
        sides, images = render_with_images(tokenizer, answers, row, processor=processor)
        names = ANSWERS
    else:
        refuse_images(answers, row)
        names, images = ("completion",), WrittenImages()
        sides = (render_single(tokenizer, answers, column="completion"),)
    return Draft(sides, names, images, {**read_weight(row), LABELS_COLUMN: labels}, _unread_keys(answers, sides))


def _unread_keys(preference: TextPreference | ChatPreference, sides: Sequence[Rendered]) -> frozenset[str]:
    ignored = frozenset[str]() if isinstance(preference, TextPreference) else preference.ignored_keys
    return ignored.union(*(side.unread_keys for side in sides))
