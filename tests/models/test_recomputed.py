"""A tree whose layers run again in the backward pass has the gradients of plain rows whose layers do not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_sharing import FAMILIES, assert_same, gradients, make_batch, make_family
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn.attention import flex_attention as torch_flex
from transformers.modeling_layers import GradientCheckpointingLayer

from burnish.models import attention, flex
from burnish.models.forward import forward, install_forward
from burnish.models.introspect import disable_dropout, trunk_of
from burnish.models.layout import TREE_ATTENTIONS, TreeAttention
from burnish.models.recomputed import also_when_recomputed, recomputes, recomputing
from burnish.models.sharing import choose_sharing, run_trunk
from conftest import make_model

OTHER = ((7, 4), ((0, 5), (1, 6), (1, 2)))
EXACT = 1e-10
IN_FLOAT32 = ("cohere2", "qwen3_moe")  # parts of them, which round differently in rows
OF_TREES = [kind for kind, (_, layout) in FAMILIES.items() if layout == "tree"]


def checkpoint(model, **options) -> None:
    """As the Trainer does it."""
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # renamed in transformers 5.23
    enable = next(getattr(model, name) for name in names if hasattr(model, name))
    enable({"use_reentrant": False, **options})
    model.train()


def attentions_of(model) -> list[str]:
    """What its first layer's attention is each time it runs, from here on."""
    trunk, seen = trunk_of(model), []
    first = next(module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer))
    part = next(child for name, child in first.named_children() if "attn" in name)
    part.register_forward_pre_hook(lambda *_: seen.append(trunk.config._attn_implementation))
    return seen


def assert_equal(found, exact) -> None:
    assert found.keys() == exact.keys()
    for name, expected in exact.items():
        tolerance = EXACT if expected.dtype == torch.float64 else 2e-5
        difference = float((found[name] - expected).norm() / expected.norm().clamp(min=1e-12))
        assert difference < tolerance, (name, difference)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.gallery) for kind in OF_TREES if kind != "mistral"), "mistral"]
)
def test_families(kind, reentrant):
    """Values and all gradients are those of plain rows, and to the last digits those of a tree that runs once."""
    model, batch = make_family(kind), make_batch()
    disable_dropout(model)
    install_forward(model, prefix_sharing="off")
    rows = gradients(model, batch)
    sharing = install_forward(model, gradient_checkpointing=True)
    assert (sharing.layout, sharing.recomputed) == ("tree", "tree"), sharing.line()
    tree = gradients(model, batch)
    checkpoint(model, use_reentrant=reentrant)
    seen = attentions_of(model)
    found = gradients(model, batch)
    assert seen == [attention.NAME] * 2, "once, and once more in the backward pass"
    assert_equal(found, tree)
    (assert_same if kind in IN_FLOAT32 else assert_equal)(found, rows)


@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_batches_in_between(reentrant):
    """Two trees, and a batch of plain rows, go forward before the first goes backward, in any order."""
    model = make_family("mistral")
    install_forward(model, gradient_checkpointing=True)
    checkpoint(model, use_reentrant=reentrant)
    batches = [make_batch(), make_batch((4, 4), ((0, 3), (1, 3))), make_batch(*OTHER)]
    alone = [_gradient(model, [batch], (0,)) for batch in batches]
    for order in ((0, 1, 2), (2, 0, 1)):
        together = _gradient(model, batches, order)
        torch.testing.assert_close(together, sum(alone), rtol=1e-12, atol=1e-12)


def _gradient(model, batches, order) -> torch.Tensor:
    """Of all batches, which went forward in their order, and backward in another."""
    model.zero_grad()
    seen = attentions_of(model)
    losses = [forward(model, batch).logps.square().sum() for batch in batches]
    own = list(seen)
    for position in order:
        losses[position].backward()
    assert seen[len(own) :] == [own[position] for position in order]
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("lean", ["auto", "off"])
def test_adapters_and_lean_layers(lean):
    """An adapter that is trained alone: the embeddings have to be told that they need a gradient, as PEFT does."""
    model, batch = make_model(dtype=torch.float64), make_batch()
    adapter = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    install_forward(model, lean_activations=lean, gradient_checkpointing=True)
    get_peft_model(model, adapter)
    exact = gradients(model, batch)
    checkpoint(model)
    seen = attentions_of(model)
    assert_equal(gradients(model, batch), exact)
    assert seen == [attention.NAME] * 2


def test_every_second_layer():
    """Layers that keep their activations stand beside such that run again."""
    model, batch = make_model(dtype=torch.float64), make_batch()
    install_forward(model, gradient_checkpointing=True)
    exact = gradients(model, batch)
    checkpoint(model)
    trunk_of(model).layers[0].gradient_checkpointing = False
    seen = attentions_of(model)
    assert_equal(gradients(model, batch), exact)
    assert seen == [attention.NAME]


def test_wrappers_of_torch():
    """Layers in the wrapper that torch's own sharding puts around them."""
    model, batch = make_model(dtype=torch.float64), make_batch()
    install_forward(model)
    exact = gradients(model, batch)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, GradientCheckpointingLayer))
    assert choose_sharing(trunk_of(model)).recomputed == "tree"
    install_forward(model.train())
    seen = attentions_of(model)
    found = gradients(model, batch)
    assert_equal({name.replace("_checkpoint_wrapped_module.", ""): value for name, value in found.items()}, exact)
    assert seen == [attention.NAME] * 2


@pytest.mark.gallery
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_flex_attention(monkeypatch):
    """The attention of CUDA, by the formula that torch has for a CPU."""
    monkeypatch.setitem(TREE_ATTENTIONS, "cpu", TreeAttention(flex.NAME, keeps_scores=False))
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    model, batch = make_family("mistral"), make_batch()
    install_forward(model, gradient_checkpointing=True)
    exact = gradients(model, batch)
    checkpoint(model)
    seen = attentions_of(model)
    assert_equal(gradients(model, batch), exact)
    assert seen == [flex.NAME] * 2


def test_what_was_put_in_is_taken_out_again():
    """Neither the comparison at the start nor a forward pass leaves anything behind, whatever happens in it."""
    trunk, batch = trunk_of(make_model()), make_batch()
    before = [dict(vars(module)) for module in trunk.modules()]
    sharing = choose_sharing(trunk, gradient_checkpointing=True)
    assert [dict(vars(module)) for module in trunk.modules()] == before
    checkpoint(trunk)
    before = [dict(vars(module)) for module in trunk.modules()]
    run_trunk(trunk, batch, sharing=sharing)
    assert [dict(vars(module)) for module in trunk.modules()] == before
    with (
        pytest.raises(KeyError),
        recomputing(trunk),
        also_when_recomputed(trunk, lambda: attention.attention_of(trunk, "")),
    ):
        raise KeyError
    assert [dict(vars(module)) for module in trunk.modules()] == before


class Forgetful(torch.nn.Module):
    """A layer norm that is another one the second time."""

    def __init__(self, own) -> None:
        super().__init__()
        self.own, self.num_runs = own, 0

    def forward(self, states):
        self.num_runs += 1
        return self.own(states) * (1 if self.num_runs != 5 else 1.01)  # 1 to 3 are compared, 4 goes forward, 5 again


def test_a_wrong_gradient_is_found_at_the_start():
    """Layers that do not compute the same again: the tree is for passes without gradient, and the line says so."""
    trunk = trunk_of(make_model())
    trunk.layers[1].input_layernorm = Forgetful(trunk.layers[1].input_layernorm)
    sharing = choose_sharing(trunk, gradient_checkpointing=True)
    assert (sharing.layout, sharing.recomputed) == ("tree", "rows")
    assert "under gradient checkpointing anew for each of them (layout rows). Not tree under" in sharing.line()
    assert "gradients differ from those of activations that are kept by" in sharing.line()


def test_a_cache_is_for_passes_without_gradient():
    """transformers drops it in layers that run again; scores of a reference still share."""
    sharing = choose_sharing(trunk_of(make_family("gemma2")), gradient_checkpointing=True)
    assert (sharing.layout, sharing.recomputed, sharing.trained) == ("cache", "rows", "rows")
    assert sharing.line().endswith("Not cache under gradient checkpointing: transformers drops it there.")


def test_a_tree_or_an_error():
    """A layer that is not transformers' own has no second run that could be tried out."""
    trunk = trunk_of(make_model())
    assert choose_sharing(trunk, "tree", gradient_checkpointing=True).recomputed == "tree"
    trunk.layers = torch.nn.ModuleList(Foreign(layer) for layer in trunk.layers)
    with pytest.raises(
        ValueError, match="Not tree under gradient checkpointing: it has no layers that can be computed"
    ):
        choose_sharing(trunk, "tree", gradient_checkpointing=True)


class Foreign(torch.nn.Module):
    """A layer of somebody else's, in which transformers has nothing to say."""

    def __init__(self, own) -> None:
        super().__init__()
        self.call = (own,)

    def forward(self, *args, **kwargs):
        return self.call[0](*args, **kwargs)


def test_recomputes():
    trunk = trunk_of(make_model())
    assert not recomputes(trunk)
    with recomputing(trunk) as num_layers:
        assert (recomputes(trunk), num_layers) == (True, 2)
    assert not recomputes(trunk)
