"""The one place where tests get models, tokenizers and rows: tiny, random, built in code, no network."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from burnish.advantages import advantages
from burnish.importance import importance_corrections
from burnish.losses import kl_estimators, policy_losses, preference_losses, reward_losses
from burnish.rewards.catalog import reward_functions

torch.set_num_threads(1)  # tiny models: a second thread only waits


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What importing and collecting made stays: garbage is never looked for in it, and each training looks for some."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


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


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32, **overrides) -> LlamaForCausalLM:
    """A random Llama of two layers and hidden size 32 over the byte vocabulary, in evaluation mode."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).to(dtype).eval()


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


TABLES = (
    advantages, importance_corrections, kl_estimators, policy_losses, preference_losses, reward_losses, reward_functions
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_rows_of_tables(monkeypatch):
    """What a test registers is gone after it: pages and schema are made of the tables."""
    for table in TABLES:
        monkeypatch.setattr(table, "_entries", dict(table._entries))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    return make_model()


@pytest.fixture
def rows() -> list[dict]:
    return make_rows()
