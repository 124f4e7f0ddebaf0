"""A model, a tokenizer and rows that are small enough to be tried in a moment, built in code."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("<pad>", "<end>", "<user>", "<assistant>", *"abcdefghijkl")
PAD, END = 0, 1
END_TOKENS = (END, 7, 12)  # several, so that answers of a random model end
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Sixteen words, one token each."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", chat_template=TEMPLATE)


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64, *, spread: float = 0.4, dropout: float = 0.0) -> Any:
    """A random Llama of two layers over those words, in evaluation mode.

    Args:
        seed: of its weights.
        dtype: of its weights.
        spread: their standard deviation; the larger, the surer the model.
        dropout: of its attention, in training mode.
    """
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=spread,
        attention_dropout=dropout,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(dtype).train(False)
    torch.set_rng_state(state)
    model.generation_config.eos_token_id = list(END_TOKENS)
    return model


def dropping_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """The same with dropout: whoever asks it in training mode is told something else each time."""
    return tiny_model(seed, dtype, dropout=0.3)


def _words(start: int, count: int) -> str:
    return " ".join("abcdefghijkl"[(start + step * 5) % 12] for step in range(count))


def preferences(count: int) -> list[dict[str, Any]]:
    """A prompt, a chosen and a rejected answer, of different lengths."""
    return [
        {
            "prompt": _words(row, 1 + row % 3),
            "chosen": " " + _words(row + 1, 1 + row % 4),
            "rejected": " " + _words(row + 3, 1 + (row * 3 + 2) % 5),
        }
        for row in range(count)
    ]


def prompts(count: int) -> list[dict[str, Any]]:
    """A prompt, and a number that `near_wanted` scores answers by."""
    return [{"prompt": _words(row, 1 + row % 3), "wanted": row % 5 + 1} for row in range(count)]


def completions(count: int) -> list[dict[str, Any]]:
    """A prompt and an answer to imitate."""
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in preferences(count)]


def judged(count: int) -> list[dict[str, Any]]:
    """A prompt and an answer that is good or bad."""
    return [{**row, "label": index % 2 == 0} for index, row in enumerate(completions(count))]


def near_wanted(completion_ids: list[list[int]], wanted: list[int], **_: Any) -> list[float]:
    """Up to 1, the nearer the mean of an answer's ids modulo 7 is to what the row wants."""
    means = [sum(token % 7 for token in ids) / max(len(ids), 1) for ids in completion_ids]
    return [1 - abs(mean - number) / 7 for mean, number in zip(means, wanted, strict=True)]


# The kinds of rows that a trainer may read (`row_kind`) -> rows of that kind.
ROWS = {"preferences": preferences, "prompts": prompts, "supervised": completions, "judged": judged}
