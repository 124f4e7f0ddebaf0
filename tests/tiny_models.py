"""The models, tokenizers and rows of the tests: tiny, random, built in code, no network."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: 256 bytes and three special tokens; pad is not eos."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<|im_start|>", "<|im_end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
    )


TINY = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {**TINY, "vocab_size": 64, "max_position_embeddings": 128, "initializer_range": 0.3}


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides) -> LlamaForCausalLM:
    """A random Llama of two layers and hidden size 32 over the byte vocabulary, in evaluation mode."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**TINY, "tie_word_embeddings": True, **overrides})).to(dtype).eval()


def make_classifier(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides) -> LlamaForSequenceClassification:
    """The same with a head of one number."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(LlamaConfig(**{**TINY, "num_labels": 1, **overrides})).to(dtype).eval()


def make_rows(num_rows: int = 12) -> list[dict]:
    """Conversational preference rows of different lengths."""
    words = ["red", "blue", "green apples", "a long walk home", "no", "seven small stones", "rain", "maybe later"]
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {i}: {words[i % 8]}?"}],
            "chosen": [{"role": "assistant", "content": f"{words[(i + 3) % 8]} is {words[(i * 5 + 1) % 8]}."}],
            "rejected": [{"role": "assistant", "content": f"{words[(i * 3 + 2) % 8]} {i}"}],
        }
        for i in range(num_rows)
    ]
