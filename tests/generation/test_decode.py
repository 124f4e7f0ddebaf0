from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from burnish.generation.decode import LiveRows, check_cache, left_padded, next_logits, tokens_in
from burnish.models.introspect import UnsupportedModelError, evaluation_mode
from conftest import make_model


def test_prompts_stand_at_the_right_end():
    ids, mask = left_padded([torch.tensor([5, 6, 7]), torch.tensor([8], dtype=torch.int32)], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert ids.dtype == mask.dtype == torch.int64


def test_tokens_in_each_row():
    """Token 0 is padding in the first row, and a token in the second."""
    found = tokens_in(torch.tensor([[0, 0, 3], [0, 4, 4]]), torch.tensor([[0, 0, 1], [1, 1, 1]]), 5)
    assert [row.nonzero().squeeze(1).tolist() for row in found] == [[3], [0, 4]]


@torch.no_grad()
def test_rows_that_move_keep_what_they_remember(model):
    """Three prompts, of which two go on, one of them twice: each gives the logits of its whole text."""
    prompts = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 10])]
    ids, mask = left_padded(prompts, 0)
    cache = DynamicCache(config=model.config)
    logits = next_logits(model, ids, mask, cache)
    seen = tokens_in(ids, mask, logits.shape[1])
    live = LiveRows(number=torch.arange(3), mask=mask, seen=seen, cache=cache).select(torch.tensor([2, 0, 2]))
    live = live.append(torch.tensor([20, 21, 22]))
    found = next_logits(model, torch.tensor([[20], [21], [22]]), live.mask, live.cache)
    assert live.number.tolist() == [2, 0, 2]
    texts = [[9, 10, 20], [5, 6, 7, 21], [9, 10, 22]]
    for row, text in enumerate(texts):
        expected = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)
        assert live.seen[row].nonzero().squeeze(1).tolist() == text
    assert int(mask.sum()) == 6  # the rows before are as they were


@pytest.mark.parametrize("kind", ["rwkv", "xlstm", "mamba"])
def test_recurrent_models_are_refused(kind):
    """They keep their state in a structure of their own, or count the padding in."""
    torch.manual_seed(0)
    size = {"attention_hidden_size": 32} if kind == "rwkv" else {"num_heads": 4} if kind == "xlstm" else {}
    config = CONFIG_MAPPING[kind](vocab_size=64, hidden_size=32, num_hidden_layers=2, **size)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match=f"(?i){kind}ForCausalLM .*generator of your own"):
        check_cache(model)


def test_a_cache_that_forgets_is_found(model, monkeypatch):
    check_cache(model)

    def forget(self, beam_idx):
        pass

    monkeypatch.setattr(DynamicLayer, "reorder_cache", forget)
    with pytest.raises(UnsupportedModelError, match="other logits when it decodes through its cache"):
        check_cache(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_check_knows_precisions(dtype):
    check_cache(make_model(dtype=dtype))


def test_each_module_returns_to_its_mode(model):
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]

    def fail():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == before
