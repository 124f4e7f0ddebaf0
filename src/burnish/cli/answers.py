"""Greedy answers of the policy to a few prompts of the data, for the table at the end of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from burnish.data.answers import read_judged, read_supervised
from burnish.data.chat import open_prompt
from burnish.data.encode import encode_texts, special_prefix
from burnish.data.errors import RowProblem
from burnish.data.formats import ChatPreference, TextPreference, read_preference
from burnish.data.images import EncodedImage, place_images, read_images, without_decoding
from burnish.data.kinds import JUDGED, PREFERENCES, SUPERVISED
from burnish.data.kwise import first_pair
from burnish.data.parts import text_of
from burnish.data.pixels import prompt_inputs
from burnish.data.placeholders import run_processor
from burnish.data.prompts import encode_prompt
from burnish.data.schema import is_kwise
from burnish.generation.base import Prompt as GeneratorPrompt
from burnish.generation.base import SamplingParams
from burnish.generation.native import NativeGenerator
from burnish.models.introspect import UnsupportedModelError, evaluation_mode, reads_images
from burnish.models.padding import filling_id
from burnish.models.vision import image_inputs, tokenizer_of
from burnish.report.console import Answer
from burnish.types import TokenBatch

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is shown, and as the model gets it: its ids, and its images as in `TokenBatch.extra`."""

    shown: str
    ids: tuple[int, ...]
    images: Mapping[str, Any] = field(default_factory=dict[str, Any])


def sample_prompts(
    rows: Dataset,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    num_prompts: int,
    *,
    kind: str = PREFERENCES,
) -> list[Prompt]:
    """Prompts of rows spread evenly over a data set, with the ids that training gives them.

    Bad rows are left out, and so are rows of text without a prompt. `kind` is what the rows are read as.
    """
    from transformers import ProcessorMixin

    count, rows = min(num_prompts, len(rows)), without_decoding(rows)
    processor = processing_class if isinstance(processing_class, ProcessorMixin) else None
    tokenizer = tokenizer_of(processing_class)
    spread = (rows[index * len(rows) // count] for index in range(count))
    chosen = (_prompt(row, tokenizer, processor, kind) for row in spread)
    return [prompt for prompt in chosen if prompt is not None]


def prompt_samples(rows: Dataset, processing_class: PreTrainedTokenizerBase, num_prompts: int) -> list[Prompt]:
    """The same of a data set of prompts. Bad rows are left out."""
    count, tokenizer = min(num_prompts, len(rows)), tokenizer_of(processing_class)
    prompts: list[Prompt] = []
    for index in range(count):
        row = rows[index * len(rows) // count]
        with contextlib.suppress(RowProblem):
            ids = tuple(encode_prompt(tokenizer, row))
            said = row["prompt"] if isinstance(row["prompt"], str) else text_of(row["prompt"][-1]["content"])
            prompts.append(Prompt(said, ids))
    return prompts


def _prompt(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin | None, kind: str
) -> Prompt | None:
    try:
        if processor is None:
            prompt = Prompt(*_shown_and_ids(row, tokenizer, kind=kind))
            return prompt if prompt.shown else None
        images = read_images(row)
        shown, ids = _shown_and_ids(row, tokenizer, processor, images, kind=kind)
        return Prompt(shown, ids, prompt_inputs(processor, images, ids))
    except RowProblem:  # named by the report on the data, if it is trained on
        return None


def _read_preference(row: Mapping[str, Any]) -> TextPreference | ChatPreference:
    return read_preference(first_pair(row) if is_kwise(row) else row)


READ = {PREFERENCES: _read_preference, SUPERVISED: read_supervised, JUDGED: lambda row: read_judged(row)[0]}


def _shown_and_ids(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    processor: ProcessorMixin | None = None,
    images: Sequence[EncodedImage] = (),
    *,
    kind: str,
) -> tuple[str, tuple[int, ...]]:
    if "prompt_input_ids" in row:
        ids = tuple(row["prompt_input_ids"])
        return str(tokenizer.decode(list(ids), skip_special_tokens=True)), ids
    read = READ[kind](row)
    if isinstance(read, TextPreference):
        text, shown, prefix = read.prompt, read.prompt, special_prefix(tokenizer)
    else:
        read = read if processor is None else place_images(read, len(images))
        text, shown, prefix = open_prompt(tokenizer, read), text_of(read.prompt[-1]["content"]), []
    if images:
        return shown, (*prefix, *run_processor(processor, images, text=text)["input_ids"][0])
    return shown, (*prefix, *encode_texts(tokenizer, [text])[0].ids)


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    end_token_ids: Sequence[int],
    stop_strings: Sequence[str] = (),
) -> list[Answer]:
    """The most likely token at each position, up to an end token or string; under evaluation mode."""
    if not prompts:
        return []
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=0,
        end_token_ids=tuple(end_token_ids),
        stop_strings=tuple(stop_strings),
    )
    return [_answer(ids, tokenizer, params) for ids in _token_ids(model, tokenizer, prompts, params)]


def _token_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], params: SamplingParams
) -> list[list[int]]:
    """From the engine of training; where it cannot decode (images, other caches), from that of transformers."""
    pad = filling_id(tokenizer, params.end_token_ids)
    asked = [GeneratorPrompt(ids=torch.tensor(prompt.ids), key=key) for key, prompt in enumerate(prompts)]
    if not reads_images(model):
        with contextlib.suppress(UnsupportedModelError):
            generator = NativeGenerator(model, pad_token_id=pad, tokenizer=tokenizer)
            answers = generator.generate(asked, params, num_samples=1, seed=0, round_index=0)
            return [answer.token_ids.tolist() for answer in answers]
    return _token_ids_of_transformers(model, tokenizer, prompts, params, pad)


@torch.no_grad()
def _token_ids_of_transformers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    pad: int,
) -> list[list[int]]:
    from transformers import GenerationConfig

    batch = _batch(prompts, pad).to(model.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=params.max_new_tokens,
        eos_token_id=list(params.end_token_ids),
        stop_strings=list(params.stop_strings) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    generate: Any = model.generate  # torch types the methods of a module as tensors
    with evaluation_mode(model):
        ids = generate(
            input_ids=batch.prompt_ids,
            attention_mask=batch.prompt_mask.long(),
            generation_config=settings,
            tokenizer=tokenizer,
            **image_inputs(batch),
        )
    return [row[batch.prompt_ids.shape[1] :] for row in ids.tolist()]


def _batch(prompts: Sequence[Prompt], pad: int) -> TokenBatch:
    """The prompts, left-padded, each with an empty completion."""
    width = max(len(prompt.ids) for prompt in prompts)
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])  # (P,)
    empty, places = torch.zeros((len(prompts), 0), dtype=torch.int64), torch.arange(len(prompts))
    return TokenBatch(
        prompt_ids=torch.tensor([[pad] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in prompts]),
        prompt_mask=torch.arange(width) >= width - lengths[:, None],
        completion_ids=empty,
        completion_mask=empty.bool(),
        loss_mask=empty.bool(),
        prompt_index=places,
        row_id=places,
        extra=tuple(prompt.images for prompt in prompts),
    )


def _answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, params: SamplingParams) -> Answer:
    end = next((index for index, token in enumerate(ids) if token in params.end_token_ids), None)
    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True))
    return Answer(text, is_cut=end is None and not any(string in text for string in params.stop_strings))
