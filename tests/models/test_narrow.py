"""Norms that only products read: which they are, and that they change no value and keep less."""

from __future__ import annotations

import pytest
import torch
from test_lean import kept_bytes
from test_sharing import gradients, make_batch, make_family

from burnish.models.forward import install_forward
from burnish.models.introspect import trunk_of
from burnish.models.lean import install_lean
from burnish.models.narrow import is_narrow
from conftest import make_model

BEFORE_PRODUCTS = {
    "llama": {"input_layernorm", "post_attention_layernorm"},
    "qwen3": {"input_layernorm", "post_attention_layernorm"},  # queries and keys are turned after their norms
    "gemma3_text": {"input_layernorm", "pre_feedforward_layernorm"},  # the others end in the residual stream
    "olmo2": set(),  # it norms what products give
}


def narrow_names(trunk: torch.nn.Module) -> set[str]:
    """The last part of the names of the norms that are cast."""
    return {name.rpartition(".")[2] for name, module in trunk.named_modules() if is_narrow(module)}


@pytest.mark.parametrize("kind", BEFORE_PRODUCTS)
def test_norms_that_only_products_read(kind):
    """Found by what they do; not the last one, whose output is the trunk's. None of a trunk that is low already."""
    trunk = trunk_of(make_family(kind).float())
    install_lean(trunk)
    assert narrow_names(trunk) == BEFORE_PRODUCTS[kind]
    install_lean(trunk, "off")
    assert narrow_names(trunk) == set()
    install_lean(trunk.bfloat16())
    assert narrow_names(trunk) == set()


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_values_are_the_same_bit_for_bit(kind, monkeypatch):
    """Under autocast, and gradients to its rounding: sums of several products' are in bfloat16. Beside it, nothing."""
    model, batch = make_family(kind).float(), make_batch()
    with monkeypatch.context() as patch:
        patch.setattr("burnish.models.lean.narrow_norms", lambda *_: None)
        install_forward(model)
    plain = gradients(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        exact = gradients(model, batch)
    install_forward(model)
    assert narrow_names(trunk_of(model))
    for name, own in gradients(model, batch).items():
        assert torch.equal(own, plain[name]), name
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, batch)
    assert torch.equal(found["logps"], exact["logps"])
    for name, expected in exact.items():
        assert float((found[name] - expected).norm()) <= 2e-2 * float(expected.norm()), name


def test_the_cast_is_not_kept():
    """Of a norm and a feed-forward of 10 tokens: the float32 input and a number a row, gate and up in bfloat16."""
    model = make_model()
    layer = trunk_of(model).layers[0]
    states = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return layer.mlp(layer.post_attention_layernorm(states))

    install_lean(trunk_of(model))
    products = sum(weight.numel() for weight in layer.mlp.parameters())
    assert kept_bytes(run) == 4 * (32 + 10 * (32 + 1)) + 2 * (products + 10 * (48 + 48))
