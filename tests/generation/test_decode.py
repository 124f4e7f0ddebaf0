from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from burnish.generation.decode import check_cache, left_padded, tokens_in
from burnish.generation.kinds import CACHES
from burnish.generation.placed import PlacedLayer
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
    for kind in CACHES:
        check_cache(model, kind)
    own = DynamicLayer.reorder_cache
    monkeypatch.setattr(DynamicLayer, "reorder_cache", lambda layer, rows: own(layer, torch.zeros_like(rows)))
    monkeypatch.setattr(PlacedLayer, "move_rows", lambda *_: None)
    for kind in CACHES:
        with pytest.raises(
            UnsupportedModelError, match=rf"\({kind}\): its logits differ from those of a plain forward"
        ):
            check_cache(model, kind)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_check_knows_precisions(dtype):
    for kind in CACHES:
        check_cache(make_model(dtype=dtype), kind)


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
