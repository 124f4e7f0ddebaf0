"""Greedy answers of the policy to a few prompts of the data, for the table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from burnish.data.chat import render
from burnish.data.encode import encode_texts, special_prefix
from burnish.data.errors import RowProblem
from burnish.data.formats import TextPreference, read_preference
from burnish.report.console import Answer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is shown, and as the model gets it."""

    shown: str
    ids: tuple[int, ...]


def sample_prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase, num_prompts: int) -> list[Prompt]:
    """Prompts of rows spread evenly over a data set, with the ids that training gives them. Bad rows are left out."""
    count = min(num_prompts, len(rows))
    chosen = (_prompt(rows[index * len(rows) // count], tokenizer) for index in range(count))
    return [prompt for prompt in chosen if prompt is not None]


def _prompt(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Prompt | None:
    if "prompt_input_ids" in row:
        ids = tuple(row["prompt_input_ids"])
        return Prompt(str(tokenizer.decode(list(ids), skip_special_tokens=True)), ids)
    try:
        read = read_preference(row)
        if isinstance(read, TextPreference):
            text, shown, prefix = read.prompt, read.prompt, special_prefix(tokenizer)
        else:
            text = render(tokenizer, read.prompt, column="prompt", open_answer=True)
            shown, prefix = str(read.prompt[-1]["content"]), []
    except RowProblem:  # named by the report on the data, if it is trained on
        return None
    return Prompt(shown, (*prefix, *encode_texts(tokenizer, [text])[0].ids))


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    end_token_ids: Sequence[int],
) -> list[Answer]:
    """The most likely token at each position, up to an end token; in one batch, under evaluation mode."""
    from transformers import GenerationConfig

    if not prompts:
        return []
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else end_token_ids[0]
    width = max(len(prompt.ids) for prompt in prompts)
    padded = [[pad] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in prompts]
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=model.device)  # (P,)
    mask = torch.arange(width, device=model.device) >= width - lengths[:, None]  # (P, L)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(end_token_ids),
        pad_token_id=pad,
        use_cache=True,
    )
    was_training = model.training
    model.eval()
    try:
        generate: Any = model.generate  # torch types the methods of a module as tensors
        ids = generate(
            input_ids=torch.tensor(padded, device=model.device), attention_mask=mask.long(), generation_config=settings
        )
    finally:
        model.train(was_training)
    return [_answer(row[width:], tokenizer, set(end_token_ids)) for row in ids.tolist()]


def _answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, end_ids: set[int]) -> Answer:
    end = next((index for index, token in enumerate(ids) if token in end_ids), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return Answer(str(text), is_cut=end is None)
