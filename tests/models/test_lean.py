"""Layers that keep less compute what they computed: every value and every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_sharing import FAMILIES, gradients, make_batch, make_family
from torch import nn

from burnish.models import elementwise, recipes
from burnish.models.elementwise import ACTIVATIONS, NORMS, gated_product, rms_norm
from burnish.models.forward import forward, install_forward
from burnish.models.introspect import trunk_of
from burnish.models.lean import install_lean, is_lean, keeping_less, lean_line, lean_modules
from burnish.models.recipes import offer, recipes_kept
from conftest import make_model

# family -> the classes that are found; what is not here keeps its own forward
FOUND = {
    "llama": {"LlamaAttention": 2, "LlamaMLP": 2, "LlamaRMSNorm": 5},
    "qwen2": {"Qwen2Attention": 2, "Qwen2MLP": 2, "Qwen2RMSNorm": 5},
    "qwen3": {"Qwen3Attention": 2, "Qwen3MLP": 2, "Qwen3RMSNorm": 9},
    "qwen3_moe": {"Qwen3MoeAttention": 2, "Qwen3MoeRMSNorm": 9},
    "mistral": {"MistralAttention": 2, "MistralMLP": 2, "MistralRMSNorm": 5},
    "gemma2": {"Gemma2Attention": 2, "Gemma2MLP": 2, "Gemma2RMSNorm": 9},
    "gemma3_text": {"Gemma3Attention": 2, "Gemma3MLP": 2, "Gemma3RMSNorm": 13},
    "gpt_oss": {"GptOssRMSNorm": 5},
    "phi3": {"Phi3RMSNorm": 5},
    "olmo2": {"Olmo2MLP": 2, "Olmo2RMSNorm": 9},
    "granite": {"GraniteAttention": 2, "GraniteMLP": 2, "GraniteRMSNorm": 5},
    "cohere2": {"Cohere2MLP": 2},
    "smollm3": {"SmolLM3Attention": 2, "SmolLM3MLP": 2, "SmolLM3RMSNorm": 5},
    "lfm2": {"Lfm2Attention": 1, "Lfm2MLP": 2, "Lfm2RMSNorm": 7},
}


def off_and_on(model, batch):
    """Log-probs and gradients of a model with all activations kept, and with few."""
    install_forward(model, lean_activations="off")
    assert lean_modules(model) == {}
    kept = gradients(model, batch)
    install_forward(model)
    return kept, gradients(model, batch)


def assert_equal(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> None:
    """To the rounding of float32, in which norms are computed whatever the model's precision."""
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        scale = max(float(expected.abs().max()), 1e-3)
        torch.testing.assert_close(found[name] / scale, expected / scale, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_families(kind):
    model = make_family(kind)
    kept, lean = off_and_on(model, make_batch())
    assert_equal(lean, kept)
    if kind in FOUND:
        assert lean_modules(model) == FOUND[kind]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gated_product_in_float64(kind, monkeypatch):
    """To 1e-10, with gradients, in several blocks of which the last is smaller."""
    monkeypatch.setattr(elementwise, "BLOCK_NUMBERS", 16)
    exact = {"silu": nn.SiLU(), "gelu_tanh": nn.GELU(approximate="tanh"), "gelu": nn.GELU()}[kind]
    gate, up, factors = (numbers(5, 7, seed=seed).mul(3) for seed in (0, 1, 2))
    inputs = (gate.requires_grad_(), up.requires_grad_())
    own, lean = exact(gate) * up, gated_product(gate, up, ACTIVATIONS[kind])
    assert torch.equal(own, lean)
    with torch.no_grad():
        assert torch.equal(own, gated_product(gate, up, ACTIVATIONS[kind]))
    for one, other in zip(
        torch.autograd.grad(own, inputs, factors), torch.autograd.grad(lean, inputs, factors), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_norm_by_hand():
    """x = (3, 4), eps = 0: r = 12.5^-1/2, y = x r w; for g = (1, 0): dw = (3 r, 0) and dx = w (r - 9 r^3 / 2, -6 r^3)."""
    states = torch.tensor([[3.0, 4.0]], requires_grad=True)
    weight = torch.tensor([2.0, 5.0], requires_grad=True)
    root = 12.5**-0.5
    normed = rms_norm(states, weight, eps=0.0, kind=NORMS["llama"])
    torch.testing.assert_close(normed, torch.tensor([[6 * root, 20 * root]]))
    of_states, of_weight = torch.autograd.grad(normed, (states, weight), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(of_weight, torch.tensor([3 * root, 0.0]))
    torch.testing.assert_close(of_states, torch.tensor([[2 * (root - 4.5 * root**3), 2 * -6 * root**3]]))


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_low_precision(precision):
    """As close as bfloat16 is exact."""
    model, batch = make_model(dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32), make_batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        kept, lean = off_and_on(model, batch)
    assert lean_modules(model) == FOUND["llama"]
    for name, exact in kept.items():
        assert float((lean[name] - exact).float().norm()) <= 3e-2 * float(exact.float().norm()), name


def kept_bytes(run) -> int:
    """Of tensors that autograd keeps for the backward pass of `run()`, without those that live anyway."""
    found: dict[int, int] = {}
    own = recipes._pack

    def counting(tensor):
        packed = own(tensor)
        if isinstance(packed, torch.Tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return packed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "_pack", counting)
        with recipes_kept():
            result = run()
    del result
    return sum(found.values())


def test_less_is_kept():
    """Of a feed-forward with its norm: its input, one number a row, gate and up; the norm, activation and product not."""
    model = make_model()
    install_forward(model)
    layer = trunk_of(model).layers[0]
    states = torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def run():
        return layer.mlp(layer.post_attention_layernorm(states))

    weights = sum(w.numel() for w in (*layer.mlp.parameters(), layer.post_attention_layernorm.weight))
    assert kept_bytes(run) == 4 * (weights + 10 * (32 + 1 + 48 + 48))
    install_lean(trunk_of(model), "off")
    assert kept_bytes(run) >= 4 * (weights + 10 * (3 * 32 + 1 + 4 * 48))


def test_adapters_checkpointing_and_a_second_backward_pass():
    """An adapter on the layers in and behind a gated product; recomputed layers; a graph that is kept."""
    for checkpoints in (False, True):
        model, batch = make_model(), make_batch()
        adapter = LoraConfig(r=2, target_modules=["q_proj", "up_proj", "down_proj"], init_lora_weights=False)
        adapted = get_peft_model(model, adapter)
        if checkpoints:
            adapted.enable_input_require_grads()
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # renamed in transformers 5.23
            enable = next(getattr(model, name) for name in names if hasattr(model, name))
            enable({"use_reentrant": False})
            adapted.train()
        kept, lean = off_and_on(model, batch)
        assert_equal(lean, kept)
    loss = forward(model, batch).logps.sum()
    trained = [p for p in model.parameters() if p.requires_grad]
    first, again = (torch.autograd.grad(loss, trained, retain_graph=keep) for keep in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_copies_weights_and_generation_are_untouched():
    model = make_model()
    names = list(model.state_dict())
    ids = torch.arange(5, 15)[None]
    own = model.generate(ids, max_new_tokens=5, do_sample=False)
    install_forward(model)
    assert list(model.state_dict()) == names
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), own)
    copied = copy.deepcopy(model)
    pairs = zip(model.modules(), copied.modules(), strict=True)
    assert all(vars(other)["forward"].__self__ is other for one, other in pairs if is_lean(one))
    with torch.no_grad():
        copied.model.layers[0].mlp.down_proj.weight.zero_()
    assert not torch.equal(copied(ids).logits, model(ids).logits)


class Gated(nn.Module):
    """A feed-forward whose gate may be clamped, which one layer of a model may do and another not."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.act_fn = nn.SiLU()
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=self.most) * self.up_proj(x))


def test_what_differs_keeps_its_own():
    """Other formulas, layer norms, and modules that somebody else has given a forward."""
    torch.manual_seed(0)
    model = make_model()
    norm = model.model.norm
    norm.forward = type(norm).forward.__get__(norm)
    others = nn.ModuleList([Gated(100.0), Gated(0.05), nn.LayerNorm(8, bias=False), nn.Linear(8, 8)])
    model.add_module("others", others)
    install_lean(model)
    assert lean_modules(model) == {**FOUND["llama"], "LlamaRMSNorm": 4, "Gated": 1}
    assert is_lean(others[0])
    assert "4 LlamaRMSNorm" in lean_line(model)
    with pytest.raises(ValueError, match="lean_activations='on'; allowed: auto, off"):
        install_lean(model, "on")


def test_offers_are_told_apart():
    """A tensor that was written to after its offer is kept itself, as is one of another order; shapes may differ."""
    weight = numbers(4, 4).requires_grad_()

    def keep(change):
        source = numbers(3, 4)
        with recipes_kept():
            made = source * 2
            offer(made, lambda: source * 2)
            result = (change(made) @ weight).sum()
        made.zero_()  # a recipe does not see this
        return torch.autograd.grad(result, weight)[0]

    wanted = (numbers(3, 4) * 2).sum(0)[:, None].expand(4, 4)
    torch.testing.assert_close(keep(lambda made: made), wanted)
    torch.testing.assert_close(keep(lambda made: made.view(1, 3, 4)), wanted)
    for change in (lambda made: made.add_(1), lambda made: made[:2]):
        assert not keep(change).any()


def test_nothing_happens_without_a_gradient_or_lean_modules():
    model = make_model()
    install_forward(model, lean_activations="off")
    with keeping_less(trunk_of(model)):
        assert recipes._offers.get() is None
    install_forward(model)
    with torch.no_grad(), keeping_less(trunk_of(model)):
        assert recipes._offers.get() is None
    with keeping_less(trunk_of(model)):
        assert recipes._offers.get() is not None
    assert recipes._offers.get() is None
