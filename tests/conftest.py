"""What every test gets. Imports nothing heavy: the process that deals the tests out to others runs none of them."""

from __future__ import annotations

import gc
import importlib
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TINY_MODELS = ("CHAT_TEMPLATE", "SMALL", "TINY", "make_classifier", "make_model", "make_rows", "make_tokenizer")


def __getattr__(name: str) -> Any:
    """`from conftest import make_model`: of tests/tiny_models.py, imported when a test asks for it."""
    if name not in TINY_MODELS:
        raise AttributeError(name)
    return getattr(importlib.import_module("tiny_models"), name)


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


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Models are tiny: a second thread only waits."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_rows_of_tables(monkeypatch):
    """What a test registers is gone after it: pages and schema are made of the tables."""
    from named_tables import TABLES

    for table in TABLES:
        monkeypatch.setattr(table, "_entries", dict(table._entries))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    from tiny_models import make_tokenizer

    return make_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    from tiny_models import make_model

    return make_model()


@pytest.fixture
def rows() -> list[dict]:
    from tiny_models import make_rows

    return make_rows()
