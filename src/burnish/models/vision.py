"""Images of a `TokenBatch` as the model's own inputs, row by row, and processors of vision-language models.

A prompt carries its images as a mapping of opaque tensors, as the processor made them for that prompt alone. Here
they are repeated for each of its rows and joined, in the order of the rows, which is the order in which a model meets
the image tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from burnish.models.introspect import reads_images

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from burnish.types import TokenBatch

TOKEN_INPUTS = ("mm_token_type_ids", "token_type_ids")


def image_inputs(batch: TokenBatch) -> dict[str, Tensor]:
    """What a vision-language model's forward takes beside token ids and attention mask; {} without images.

    `TOKEN_INPUTS` say of each token what it stands for: (N, L+T), 0 in padding and completions. Every other tensor is
    `join_rows` of the rows' prompts; a prompt without images adds nothing to it.
    """
    if not any(batch.extra):
        return {}
    rows = [batch.extra[prompt] for prompt in batch.prompt_index.tolist()]  # N mappings
    inputs: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name in TOKEN_INPUTS:
            inputs[name] = _token_input(batch, name)
        else:
            inputs[name] = join_rows([row[name] for row in rows if name in row])
    return inputs


def join_rows(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one rank, joined along their first axis; on the others zeros fill up to the largest size.

    Families count in different things along the first axis (samples, images, patches), and take zeros elsewhere as
    images, tiles or pixels that are not there.
    """
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    filled = [_fill(tensor, sizes) for tensor in tensors]
    return torch.cat(filled)


def plain_inputs(batch: TokenBatch, row: int) -> dict[str, Tensor]:
    """One row as the model's own inputs: its real tokens, (1, length), and its images; for the model's own forward."""
    prompt = int(batch.prompt_index[row])
    prompt_ids = batch.prompt_ids[prompt][batch.prompt_mask[prompt]]
    completion_ids = batch.completion_ids[row][batch.completion_mask[row]]
    inputs = {"input_ids": torch.cat([prompt_ids, completion_ids])[None]}
    for name, tensor in (batch.extra[prompt] if batch.extra else {}).items():
        inputs[name] = pad(tensor, (0, len(completion_ids)))[None] if name in TOKEN_INPUTS else tensor
    return inputs


def is_vision_config(config: PreTrainedConfig) -> bool:
    """The configuration is of a model that reads images and text, and its checkpoint is of that model.

    The text part of some checkpoints can be saved under the same configuration; their architecture says so.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return False
    vision: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return not config.architectures or vision.__name__ in config.architectures


def load_processor(name: str, *, config: PreTrainedConfig, **kwargs: Any) -> ProcessorMixin:
    """The processor of a vision-language model. Where its part for videos cannot be had, it reads images alone.

    That part needs torchvision, and its own file, which a processor of images alone is saved without.

    Args:
        name: a directory or a hub name.
        config: the model's configuration.
        kwargs: as in `AutoProcessor.from_pretrained`.

    Raises:
        ImportError: the processor needs a package that is not installed; the message names it.
        OSError: there is no processor under that name.
    """
    from transformers import PROCESSOR_MAPPING, AutoProcessor

    try:
        return AutoProcessor.from_pretrained(name, **kwargs)
    except (ImportError, OSError):
        processor_class: Any = PROCESSOR_MAPPING.get(type(config), None)
        if processor_class is None or without_videos(processor_class) is processor_class:
            raise
    return without_videos(processor_class).from_pretrained(name, **kwargs)


def without_videos(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor without a part for videos; the class itself if it has none.

    It is saved under the name of the given class. With torchvision, that class loads it once a video processor lies
    beside it.
    """
    parts = processor_class.get_attributes()
    if "video_processor" not in parts:
        return processor_class
    place = parts.index("video_processor")

    def get_attributes(cls: type[ProcessorMixin]) -> list[str]:
        del cls
        return parts[:place] + parts[place + 1 :]

    def from_args_and_dict(cls: type[Any], args: Sequence[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        whole = [*args[:place], None, *args[place:]]
        return super(images_alone, cls).from_args_and_dict(whole, processor_dict, **kwargs)

    def __reduce__(self: Any) -> tuple[Any, ...]:  # the class exists in no module, where pickle would look for it
        return _restore, (processor_class, self.__dict__)

    methods = {
        "get_attributes": classmethod(get_attributes),
        "from_args_and_dict": classmethod(from_args_and_dict),
        "__reduce__": __reduce__,
    }
    images_alone: Any = type(processor_class.__name__, (processor_class,), methods)
    return images_alone


def tokenizer_of(processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> PreTrainedTokenizerBase:
    """The tokenizer: the given one, or the processor's, with the processor's chat template where it has one."""
    from transformers import ProcessorMixin

    if not isinstance(processing_class, ProcessorMixin):
        return processing_class
    tokenizer = copy.copy(processing_class.tokenizer)
    tokenizer.chat_template = processing_class.chat_template or tokenizer.chat_template
    return tokenizer


def check_processing_class(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase | ProcessorMixin) -> None:
    """A processor goes with a model that reads what it makes.

    Raises:
        ValueError: a processor for a model of text.
    """
    from transformers import ProcessorMixin

    if isinstance(processing_class, ProcessorMixin) and not reads_images(model):
        raise ValueError(
            f"processing_class is {type(processing_class).__name__}, but {type(model).__name__} reads no images: pass "
            "its tokenizer, or load the model with AutoModelForImageTextToText"
        )


def _restore(processor_class: type[ProcessorMixin], state: dict[str, Any]) -> ProcessorMixin:
    processor = object.__new__(without_videos(processor_class))
    processor.__dict__.update(state)
    return processor


def _token_input(batch: TokenBatch, name: str) -> Int[Tensor, "N LT"]:
    """Each row's prompt tokens in their left-padded place, zeros for the rest."""
    (num_prompts, width), length = batch.prompt_ids.shape, batch.completion_ids.shape[1]
    values = torch.zeros((num_prompts, width + length), dtype=torch.long, device=batch.prompt_ids.device)  # (P, L+T)
    for prompt, inputs in enumerate(batch.extra):
        if name in inputs:
            values[prompt, width - len(inputs[name]) : width] = inputs[name]
    return values[batch.prompt_index]


def _fill(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - own for size, own in zip(sizes, tensor.shape[1:], strict=True)]
    return pad(tensor, [amount for after in reversed(missing) for amount in (0, after)])
