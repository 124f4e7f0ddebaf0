from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from burnish.generation.cache import Room
from burnish.generation.decode import left_padded, next_logits, prefill
from burnish.generation.kinds import CACHES
from burnish.generation.placed import SLACK, PlacedRows
from burnish.models.introspect import UnsupportedModelError
from conftest import make_model


def make_cache(model, kind: str, prompts: list[list[int]], **settings):
    """A cache for four rows, and the prompts, run."""
    sizes = {"num_rows": 4, "longest_prompt": max(map(len, prompts)), "rows_per_prompt": 4, "max_new_tokens": 6}
    ids, mask = left_padded([torch.tensor(prompt) for prompt in prompts], 0)
    return CACHES[kind](model.config, Room(**{**sizes, "refills": True, **settings})), prefill(model, ids, mask)


def assert_logits_of_texts(model, logits: torch.Tensor, texts: list[list[int]]) -> None:
    """Each row's are those of its whole text, alone."""
    for row, text in enumerate(texts):
        expected = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_rows_that_move_keep_what_they_remember(model, kind):
    """Three prompts, of which two go on, one of them twice; then the first row leaves."""
    prompts = [[5, 6, 7], [8], [9, 10]]
    cache, run = make_cache(model, kind, prompts)
    assert run.lengths == (3, 1, 2)
    assert_logits_of_texts(model, run.logits, prompts)
    cache.admit(run, [2, 0, 2])
    logits = next_logits(model, torch.tensor([20, 21, 22]), cache)
    assert_logits_of_texts(model, logits, [[9, 10, 20], [5, 6, 7, 21], [9, 10, 22]])
    order = cache.keep(torch.tensor([1, 2])).tolist()
    assert sorted(order) == [1, 2]
    texts = [[5, 6, 7, 21, 30], [9, 10, 22, 30]]
    logits = next_logits(model, torch.tensor([30, 30]), cache)
    assert_logits_of_texts(model, logits, [texts[row - 1] for row in order])


@torch.no_grad()
def test_only_the_last_rows_move_into_free_places(model):
    cache, run = make_cache(model, "rows", [[5]])
    cache.admit(run, [0, 0, 0, 0])
    before = cache.layers[0].keys.clone()
    assert cache.keep(torch.tensor([0, 2, 3])).tolist() == [0, 3, 2]
    moved = (cache.layers[0].keys != before).flatten(1).any(1)
    assert moved.tolist() == [False] * 4  # rows of one prompt are alike so far
    next_logits(model, torch.tensor([7, 8, 9]), cache)
    before = cache.layers[0].keys.clone()
    assert cache.keep(torch.tensor([1, 2])).tolist() == [2, 1]
    moved = (cache.layers[0].keys != before).flatten(1).any(1)
    assert moved.tolist() == [True, False, False, False]


@torch.no_grad()
def test_rows_join_rows_that_are_longer_or_shorter(model):
    """A prompt joins while another one's answer grows; a longer one follows, and the first answer ends."""
    cache, run = make_cache(model, "rows", [[5, 6], [7, 8, 9, 10, 11]], max_new_tokens=9)
    cache.admit(run, [0])
    texts = [[5, 6]]
    for step, joins in enumerate([None, 1, None, 0, None]):
        if joins is not None:
            cache.admit(run, [joins])
            texts.append([[5, 6], [7, 8, 9, 10, 11]][joins])
        tokens = [20 + step + row for row in range(len(texts))]
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        assert_logits_of_texts(model, next_logits(model, torch.tensor(tokens), cache), texts)


@pytest.mark.parametrize("window", [None, 6])
@torch.no_grad()
def test_columns_are_used_again(window):
    """Many more tokens than columns, in rows that come and go; with a sliding window too."""
    kind, settings = ("mistral", {"sliding_window": window}) if window else ("llama", {})
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes, **heads, **settings)).eval()
    cache, run = make_cache(model, "rows", [[5, 6, 7]], max_new_tokens=30)
    columns = cache.room.longest_prompt + 30 + SLACK
    texts: list[list[int]] = []
    for step in range(2 * columns):
        if step % 20 == 0:
            cache.admit(run, [0])
            texts.append([5, 6, 7])
        tokens = [(step * 7 + row) % 60 + 2 for row in range(len(texts))]
        texts = [[*text, token] for text, token in zip(texts, tokens, strict=True)]
        logits = next_logits(model, torch.tensor(tokens), cache)
        if step % 9 == 0:
            assert_logits_of_texts(model, logits, texts)
        if len(texts[0]) == 3 + 29:
            order = cache.keep(torch.arange(1, len(texts))).tolist()
            texts = [texts[row] for row in order]
    assert cache.layers[0].keys.shape == (4, 2, columns, 8)


def test_buffers_are_made_once_and_written_in_place(model):
    cache, run = make_cache(model, "rows", [[5, 6]], refills=False)
    cache.admit(run, [0, 0])
    places = [layer.keys.data_ptr() for layer in cache.layers]
    with torch.no_grad():
        for token in range(5):
            next_logits(model, torch.tensor([token, token]), cache)
    assert [layer.keys.data_ptr() for layer in cache.layers] == places
    assert cache.layers[0].keys.shape == (4, 2, 2 + 6, 8)


def test_under_autocast_keys_are_kept_as_they_are_attended_to():
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        cache, run = make_cache(model, "rows", [[5, 6]])
        cache.admit(run, [0])
    assert {layer.keys.dtype for layer in cache.layers} == {torch.bfloat16}


def test_layers_that_remember_something_else_are_named():
    config = CONFIG_MAPPING["lfm2"](num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(UnsupportedModelError, match="it keeps LinearAttentionLayer beside keys and values"):
        PlacedRows(config, Room(num_rows=1, longest_prompt=1, rows_per_prompt=1, max_new_tokens=1, refills=False))
