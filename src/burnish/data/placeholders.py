"""Image placeholders in a row's text -> the tokens that stand for each image, as the model's processor has them.

A chat template writes one placeholder for an image; a model reads as many tokens as the image has patches, often
between tokens of its own. The processor says which text takes a placeholder's place. With it, the row's token ids
are final before any training, and no pixel is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from burnish.data.chat import Rendered, render_preference
from burnish.data.encode import encode_texts
from burnish.data.errors import DataError, RowProblem
from burnish.data.formats import ANSWERS, ChatPreference, TextPreference
from burnish.data.images import DIGEST_COLUMN, EncodedImage, decode_image, place_images, read_images, refuse_images
from burnish.data.kwise import in_twos, naming_completions
from burnish.data.schema import is_kwise
from burnish.data.truncate import RowTokens, TruncationPolicy

OFFSETS = "text_replacement_offsets"


@dataclass(frozen=True)
class WrittenImages:
    """The images of a row once its token ids hold them.

    Attributes:
        token_ids: the special tokens that they are written with; the text around them has none of these.
        digests: of each image, in order.
    """

    token_ids: frozenset[int] = frozenset()
    digests: tuple[int, ...] = ()

    @property
    def record(self) -> dict[str, list[int]]:
        """What a prepared row keeps of them, beside the images themselves."""
        return {DIGEST_COLUMN: list(self.digests)}

    def check_whole(self, prompt: Sequence[int], cut: Sequence[int], truncation: TruncationPolicy) -> None:
        """No image token may be cut: the model would have more patches than places for them.

        Args:
            prompt: token ids of the prompt.
            cut: what is left of them.
            truncation: the limits, for the error.

        Raises:
            RowProblem: the prompt has lost an image token.
        """
        before, after = (sum(token in self.token_ids for token in ids) for ids in (prompt, cut))
        if before == after:
            return
        limits = f"max_length={truncation.max_length}, max_prompt_length={truncation.max_prompt_length}"
        lengths = f"prompt {len(prompt)}, of which images {before}; left {len(cut)}, of which images {after}"
        fix = "Raise the limit, use truncation_mode='keep_start', or give smaller images."
        raise RowProblem("prompt", f"image tokens would be cut ({lengths})", value=limits, fix=fix)


def render_with_images(
    tokenizer: PreTrainedTokenizerBase,
    preference: TextPreference | ChatPreference,
    row: Mapping[str, Any],
    *,
    processor: ProcessorMixin | None,
) -> tuple[tuple[Rendered, Rendered], WrittenImages]:
    """Chosen and rejected text of a row with its images written out.

    Args:
        tokenizer: has the chat template.
        preference: the row in canonical form.
        row: the row, with its images.
        processor: the model's, or None for a model of text, which takes no images.

    Raises:
        DataError: see `render_preference`; a processor that does not say what a placeholder stands for.
        RowProblem: the row cannot be trained on.
    """
    if processor is None:
        refuse_images(preference, row)
        return render_preference(tokenizer, preference), WrittenImages()
    images = read_images(row)
    if isinstance(preference, ChatPreference):
        preference = place_images(preference, len(images))
    chosen, rejected = render_preference(tokenizer, preference)
    return write_images(processor, chosen, rejected, images)


def write_images(
    processor: ProcessorMixin, chosen: Rendered, rejected: Rendered, images: Sequence[EncodedImage]
) -> tuple[tuple[Rendered, Rendered], WrittenImages]:
    """Two texts with the images of their prompt written out.

    Args:
        processor: the model's.
        chosen: a text with a placeholder for each image in the prompt.
        rejected: the same with the other answer.
        images: the row's images in the order of the placeholders; none for a row of text.

    Raises:
        RowProblem: more or fewer placeholders than images, one in an answer, an image that cannot be decoded, or one
            that the processor refuses.
        DataError: a processor that does not say what a placeholder stands for.
    """
    placeholder = placeholder_of(processor)
    for column, side in zip(ANSWERS, (chosen, rejected), strict=True):
        _check_placeholders(column, side, placeholder, len(images))
    if not images:
        return (chosen, rejected), WrittenImages()
    outputs = run_processor(processor, images, text=chosen.text)
    written = [replacement["replacement"] for replacement in outputs[OFFSETS][0]]
    sides = _write_out(chosen, placeholder, written), _write_out(rejected, placeholder, written)
    (tokens,) = encode_texts(processor.tokenizer, [sides[0].text])
    if tokens.ids != list(outputs["input_ids"][0]):
        raise DataError(
            f"{type(processor).__name__} makes other tokens of a text with images than its tokenizer does of the text "
            "that it says it reads: models of this kind are not supported yet."
        )
    digests = tuple(image.digest for image in images)
    return sides, WrittenImages(image_token_ids(processor.tokenizer, written), digests)


def match_images(
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    row: Mapping[str, Any],
    *,
    processor: ProcessorMixin | None,
) -> WrittenImages:
    """The images of a row that is token ids already: they must be in its prompt, written out.

    Args:
        prompt: token ids of the prompt.
        answers: token ids of chosen and rejected.
        row: the row, with its images.
        processor: the model's, or None for a model of text, which takes no images.

    Raises:
        RowProblem: not the image tokens that the images take, or image tokens in an answer.
        DataError: a processor that does not say what a placeholder stands for.
    """
    if processor is None:
        refuse_images(None, row)
        return WrittenImages()
    images = read_images(row)
    written, needed = [placeholder_of(processor)], list[int]()
    if images:
        outputs = run_processor(processor, images, text=written[0] * len(images))
        written, needed = [entry["replacement"] for entry in outputs[OFFSETS][0]], list(outputs["input_ids"][0])
    token_ids = image_token_ids(processor.tokenizer, written)
    needed = [token for token in needed if token in token_ids]
    given = [token for token in prompt if token in token_ids]
    fix = "Give prompt_input_ids as the model's processor makes them of text and images."
    if given != needed:
        problem = f"has {len(given)} image tokens; its {len(images)} images take {len(needed)}, in their own order"
        raise RowProblem("prompt_input_ids", problem, value=given[:8], fix=fix)
    for column, answer in zip(ANSWERS, answers, strict=True):
        if token_ids.intersection(answer):
            raise RowProblem(
                f"{column}_input_ids", "has image tokens: images belong to the prompt", value=None, fix=fix
            )
    return WrittenImages(token_ids, tuple(image.digest for image in images))


def match_row_images(tokens: RowTokens, row: Mapping[str, Any], *, processor: ProcessorMixin | None) -> WrittenImages:
    """The images of a row of token ids; see `match_images`.

    Raises:
        RowProblem: not the image tokens that the images take, or image tokens in an answer.
        DataError: a processor that does not say what a placeholder stands for.
    """
    if not is_kwise(row):
        return match_images(tokens.prompt, tokens.completions, row, processor=processor)
    images = WrittenImages()
    for first, second in in_twos(range(len(tokens.completions))):
        with naming_completions(first, second):
            answers = tokens.completions[first], tokens.completions[second]
            images = match_images(tokens.prompt, answers, row, processor=processor)
    return images


def run_processor(processor: Any, images: Sequence[EncodedImage], *, text: str, **kwargs: Any) -> Any:
    """The processor's own outputs for one text and its images, without special tokens around the text.

    Raises:
        RowProblem: an image that cannot be decoded, or one that the processor refuses.
        DataError: a processor that does not say what a placeholder stands for.
    """
    decoded = [decode_image(image) for image in images]
    options = {"add_special_tokens": False, "return_text_replacement_offsets": True, **kwargs}
    try:
        outputs = processor(images=[decoded], text=[text], **options)
    except (ValueError, TypeError, IndexError) as error:
        sizes = [image.size for image in decoded]
        fix = "Replace the image, or remove the row."
        problem = f"{type(processor).__name__} refuses the images: {error}"
        raise RowProblem(images[0].column, problem, value=sizes, fix=fix) from error
    if OFFSETS not in outputs:
        raise DataError(
            f"{type(processor).__name__} does not say which tokens stand for an image (it returns no {OFFSETS}): "
            "use a newer transformers, or another model."
        )
    return outputs


def placeholder_of(processor: Any) -> str:
    """The text that stands for an image before it is written out.

    Raises:
        DataError: the processor has none.
    """
    try:
        return processor.image_token
    except AttributeError as error:
        raise DataError(
            f"{type(processor).__name__} has no image_token, the text that stands for an image: it is no processor of "
            "a vision-language model, or one of a kind that is not supported yet. Pass its tokenizer for rows of text."
        ) from error


def image_token_ids(tokenizer: PreTrainedTokenizerBase, written: Sequence[str]) -> frozenset[int]:
    """The special tokens among those that images are written with."""
    tokens = encode_texts(tokenizer, list(dict.fromkeys(written)))
    return frozenset(i for text in tokens for i in text.ids).intersection(tokenizer.added_tokens_decoder)


def _check_placeholders(column: str, side: Rendered, placeholder: str, num_images: int) -> None:
    start = side.spans[0][0]
    in_prompt, in_answer = (text.count(placeholder) for text in (side.text[:start], side.text[start:]))
    if in_answer:
        fix = "Images belong to the prompt; where the answer only speaks of the token, spell it another way."
        raise RowProblem(column, f"has the text {placeholder}, which stands for an image", value=side.text, fix=fix)
    if in_prompt == num_images:
        return
    if side.is_chat:
        fix = f"Remove {placeholder} from the text; and use a chat template that writes every image part."
    else:
        fix = f"Write {placeholder} into the prompt wherever an image stands, or give messages."
    problem = f"has {in_prompt} times {placeholder} for {num_images} images"
    raise RowProblem("prompt", problem, value=side.text[:start], fix=fix)


def _write_out(side: Rendered, placeholder: str, written: Sequence[str]) -> Rendered:
    """The text with each placeholder replaced; all of them stand before the first span, which moves along."""
    replacements = iter(written)
    text = re.sub(re.escape(placeholder), lambda _: next(replacements), side.text)
    longer = len(text) - len(side.text)
    return replace(side, text=text, spans=tuple((start + longer, end + longer) for start, end in side.spans))
