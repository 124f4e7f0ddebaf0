"""Images of prepared rows -> the model's own inputs, when a batch is made: pixel values are never stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from burnish.data.collate import PreferenceCollator
from burnish.data.errors import DataError, RowProblem
from burnish.data.images import DIGEST_COLUMN, EncodedImage, read_images
from burnish.data.placeholders import OFFSETS, placeholder_of, run_processor
from burnish.types import PreferenceBatch

TEXT_OUTPUTS = ("input_ids", "attention_mask", OFFSETS)
TYPE_OUTPUTS = ("mm_token_type_ids", "token_type_ids")


class ImageCollator:
    """The parcel of another collator, with the images of each row's prompt as the model takes them.

    `extra` has one mapping for each prompt: what the processor makes of its images alone (pixel_values and whatever
    the family adds to it), and, where the model tells image tokens from others, their kind for every prompt token,
    (L,). {} for a prompt without images.

    Args:
        collator: prepared rows -> parcel, one prompt for each row.
        processor: the model's.
    """

    def __init__(self, collator: PreferenceCollator, processor: ProcessorMixin) -> None:
        self.collator = collator
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> PreferenceBatch:
        """One parcel of all rows.

        Raises:
            DataError: an image that is no longer what it was when the row was prepared; the message names the row.
        """
        batch = self.collator(rows)
        assert len(batch.prompt_ids) == len(rows)
        return replace(batch, extra=tuple(self._inputs(row) for row in rows))

    def _inputs(self, row: Mapping[str, Any]) -> dict[str, Tensor]:
        try:
            images = read_images(row)
            _check_unchanged(images, row)
            return prompt_inputs(self.processor, images, row["prompt_input_ids"])
        except RowProblem as problem:
            raise DataError(f"row {row['row_id']} can no longer be read: {problem}; found {problem.value}") from problem


def prompt_inputs(
    processor: ProcessorMixin, images: Sequence[EncodedImage], prompt_ids: Sequence[int]
) -> dict[str, Tensor]:
    """The model's inputs for the images of one prompt; {} without images.

    Args:
        processor: the model's.
        images: the prompt's images in order.
        prompt_ids: its token ids, images written out.

    Raises:
        RowProblem: an image that cannot be decoded, or one that the processor refuses.
    """
    if not images:
        return {}
    text = placeholder_of(processor) * len(images)
    outputs = run_processor(processor, images, text=text, return_tensors="pt")
    inputs = {name: value for name, value in outputs.items() if name not in (*TEXT_OUTPUTS, *TYPE_OUTPUTS)}
    for name in TYPE_OUTPUTS:
        if name in outputs and outputs[name].any():
            kinds = dict(zip(outputs["input_ids"][0].tolist(), outputs[name][0].tolist(), strict=True))
            inputs[name] = outputs[name].new_tensor([kinds.get(token, 0) for token in prompt_ids])
    return inputs


def _check_unchanged(images: Sequence[EncodedImage], row: Mapping[str, Any]) -> None:
    digests = [image.digest for image in images]
    if DIGEST_COLUMN not in row or digests == list(row[DIGEST_COLUMN] or []):
        return
    names = ", ".join(image.name for image in images) or "none"
    fix = "Prepare the data set again."
    raise RowProblem(images[0].column if images else "images", "has changed since then", value=names, fix=fix)
