from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from burnish.generation import packing
from burnish.generation.packing import packed_linears
from conftest import make_model

ROWS = 5


@pytest.fixture(autouse=True)
def _every_layer_is_large_enough(monkeypatch):
    monkeypatch.setattr(packing, "MIN_WEIGHTS", 1)


@pytest.fixture
def _precision():
    yield
    torch.set_float32_matmul_precision("highest")


def ids_of(rows: int) -> torch.Tensor:
    return torch.arange(rows * 2).view(rows, 2) + 3


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("rows", [ROWS, ROWS - 1, 1, 9])
@torch.no_grad()
def test_packed_weights_give_the_same_logits(model, precision, rows):
    """In full, nearly full, and other numbers of rows; in every linear layer of two blocks, and the head."""
    torch.set_float32_matmul_precision(precision)
    for tokens in (1, 2):
        ids = ids_of(rows)[:, :tokens]
        expected = model(input_ids=ids).logits
        with packed_linears(model, ROWS) as count:
            found = model(input_ids=ids).logits
        assert count == 15
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_under_autocast_as_autocast_would(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(input_ids=ids_of(ROWS)).logits
        with packed_linears(model, ROWS) as count:
            found = model(input_ids=ids_of(ROWS)).logits
    assert count == 15
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_weights_in_bfloat16():
    model = make_model(dtype=torch.bfloat16)
    expected = model(input_ids=ids_of(ROWS)).logits
    with packed_linears(model, ROWS) as count:
        found = model(input_ids=ids_of(ROWS)).logits
    assert count == 15
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_biases_count(model):
    layer = nn.Linear(8, 6)
    states = torch.randn(ROWS, 1, 8)
    for low in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with low:
            expected = layer(states)
            with packed_linears(layer, ROWS) as count:
                assert count == 1
                torch.testing.assert_close(layer(states), expected, rtol=0.02, atol=0.02)


@torch.no_grad()
def test_layers_are_as_they_were_and_read_their_weights_again(model):
    before = {name: vars(module).keys() for name, module in model.named_modules()}
    with pytest.raises(KeyError), packed_linears(model, ROWS):
        raise KeyError
    assert {name: vars(module).keys() for name, module in model.named_modules()} == before
    old = model(input_ids=ids_of(ROWS)).logits
    model.lm_head.weight.mul_(2)
    with packed_linears(model, ROWS):
        new = model(input_ids=ids_of(ROWS)).logits
    assert not torch.allclose(new, old)
    torch.testing.assert_close(new, model(input_ids=ids_of(ROWS)).logits)


class Doubled(nn.Linear):
    """A linear layer that is more than one."""

    def forward(self, states):
        return 2 * super().forward(states)


@torch.no_grad()
def test_what_is_not_a_plain_layer_stays():
    wrapped = nn.Linear(8, 8)
    vars(wrapped)["forward"] = lambda states: states
    layers = nn.ModuleList([Doubled(8, 8), wrapped, nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8)])
    with packed_linears(layers, ROWS) as count:
        assert count == 1
        assert "forward" in vars(layers[3])
    assert "forward" in vars(wrapped)


@torch.no_grad()
def test_a_kernel_that_is_wrong_or_missing_is_not_used(model, monkeypatch):
    expected = model(input_ids=ids_of(ROWS)).logits

    def wrong(layer, num_rows):
        return lambda states: states.new_zeros(*states.shape[:-1], layer.out_features)

    def missing(layer, num_rows):
        raise RuntimeError("no such operator")

    for product in (wrong, missing):
        monkeypatch.setattr(packing, "_mkl_product", product)
        with packed_linears(model, ROWS) as count:
            assert count == 0
            assert torch.equal(model(input_ids=ids_of(ROWS)).logits, expected)


def test_adapters_are_not_packed_away(model, monkeypatch):
    """The layer below an adapter is packed, and the adapter's own small matrices are not."""
    peft = pytest.importorskip("peft", reason="adapters need the package peft")
    monkeypatch.setattr(packing, "MIN_WEIGHTS", 200)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    with torch.no_grad():
        expected = adapted(input_ids=ids_of(ROWS)).logits
        with packed_linears(adapted, ROWS) as count:
            found = adapted(input_ids=ids_of(ROWS)).logits
    assert count == 15
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
