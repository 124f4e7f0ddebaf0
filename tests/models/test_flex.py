"""Flex attention over a tree has the values and gradients of our own attention, and of plain rows."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_recomputed import checkpoint
from test_sharing import assert_same, gradients, make_batch, make_family
from torch.nn.attention import flex_attention as torch_flex

from burnish.models import attention, flex
from burnish.models.forward import install_forward
from burnish.models.introspect import trunk_of
from burnish.models.layout import TREE_ATTENTIONS, TreeAttention, run_rows, run_tree
from burnish.models.load import place
from burnish.models.sharing import Sharing, choose_sharing, run_trunk
from burnish.models.tree import make_tree
from conftest import make_model

FLEX = TreeAttention(flex.NAME, keeps_scores=False, words=", flex attention")

# What torch says while it traces: that there is no kernel, and of the gradients of tensors that are no leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """Flex attention takes the place of our own. torch refuses its gradient on a CPU, though its plain formula has one.

    So the check that refuses is left out: what runs is torch's own uncompiled formula, forward and backward.
    """
    monkeypatch.setitem(TREE_ATTENTIONS, "cpu", FLEX)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


@pytest.mark.parametrize(
    "kind",
    [
        "gemma3_text",  # full and sliding layers, heads in groups
        *(pytest.param(kind, marks=pytest.mark.gallery) for kind in ("llama", "qwen3_moe", "mistral", "gpt2")),
    ],
)
def test_values_and_gradients(kind, flex_on_cpu, monkeypatch):
    """Log-probs, entropies and every gradient: plain rows, our own tree, and flex attention's."""
    model, batch = make_family(kind), make_batch()
    install_forward(model, prefix_sharing="off")
    exact = gradients(model, batch)
    assert install_forward(model, prefix_sharing="tree").line().endswith("(layout tree, flex attention).")
    found = gradients(model, batch)
    assert_same(found, exact)
    monkeypatch.setitem(TREE_ATTENTIONS, "cpu", TreeAttention(attention.NAME, keeps_scores=True))
    install_forward(model, prefix_sharing="tree")
    assert_same(found, gradients(model, batch))


def test_float32(flex_on_cpu):
    """Within 1e-5 of the size of the states of plain rows."""
    trunk, batch = trunk_of(make_family("llama").float()), make_batch()
    exact, found = (run(trunk, batch).hidden[:, 1:].detach() for run in (run_rows, run_tree))
    there = batch.completion_mask
    torch.testing.assert_close(found[there], exact[there], atol=1e-5 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize("window", [None, 3])
def test_who_sees_whom(window):
    """One prompt of two tokens with answers of two and one: [p0 p1 | a0 a1 | b0] at positions 0 1 | 2 3 | 2."""
    tree = make_tree(make_batch((2,), ((0, 2), (0, 1))))
    places = torch.arange(5)
    seen = flex.who_sees(tree, window)(None, None, places[:, None], places[None]).int().tolist()
    near = 1 if window is None else 0  # a1 stands three tokens behind p0
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [near, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


@pytest.mark.parametrize("budget", [1, 1 << 26])
@pytest.mark.parametrize("window", [None, 40])
def test_blocks_are_those_that_torch_makes(budget, window, monkeypatch):
    """Whatever is looked at together: partly and wholly seen blocks of a row of 700 tokens and 4 that round it up."""
    monkeypatch.setattr(flex, "MASK_BUDGET", budget)
    tree = make_tree(make_batch((300, 20), ((0, 150), (1, 130), (0, 100))))
    found, size = flex.block_mask(tree, window), len(tree.source)
    made = torch_flex.create_block_mask(flex.who_sees(tree, window), None, None, size, size, device="cpu")
    assert size == 704
    assert found.shape == made.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "kv_indices", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(found, name), getattr(made, name)), name


def test_more_than_plain_attention_is_refused(flex_on_cpu):
    """A softcap is no part of it: the model runs through its cache, as with our own attention."""
    sharing = choose_sharing(trunk_of(make_family("gemma2")))
    assert sharing.layout == "cache"
    assert "Not tree: it cannot run so (attention with" in sharing.line()


def test_devices_without_an_attention_over_a_tree(monkeypatch):
    """They share through the model's cache, and the line says why."""
    monkeypatch.delitem(TREE_ATTENTIONS, "cpu")
    sharing = choose_sharing(trunk_of(make_family("llama")))
    assert sharing == Sharing("cache", "Not tree: there is no attention over a tree for cpu.", "cpu")


def test_a_model_that_was_moved_shares_through_its_cache():
    """What was found out on one device is not taken for granted on another."""
    trunk, batch = trunk_of(make_family("llama")), make_batch()
    calls: list[str] = []
    trunk.layers[0].register_forward_pre_hook(lambda *_: calls.append(trunk.config._attn_implementation))
    run_trunk(trunk, batch, sharing=Sharing("tree", device="cuda"))
    assert calls == ["sdpa"] * 2, "prompts, then completions"
    run_trunk(trunk, batch, sharing=Sharing("tree", device="cpu"))
    assert calls[2:] == [attention.NAME]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler (g++)")
def test_compiled_kernel_on_a_cpu(monkeypatch):
    """The compiled forward pass, for which torch has a CPU kernel; another length compiles nothing anew."""
    monkeypatch.setattr(flex, "flex_attention", flex._compiled())
    monkeypatch.setitem(TREE_ATTENTIONS, "cpu", FLEX)
    trunk = trunk_of(make_family("llama").float())
    for batch in (make_batch(), make_batch((7, 4), ((0, 5), (1, 6), (1, 2)))):
        there = batch.completion_mask
        with torch.no_grad():
            exact, found = run_rows(trunk, batch).hidden[:, 1:], run_tree(trunk, batch).hidden[:, 1:]
        torch.testing.assert_close(found[there], exact[there], atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel with a gradient is compiled for a CUDA device")
@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)], ids=str)
def test_compiled_kernel_on_cuda(dtype, tolerance, checkpoints):
    """The layout that a CUDA device takes has the states and gradients of plain rows."""
    model = make_model(hidden_size=64).to("cuda", dtype)
    batch = make_batch().to("cuda")
    install_forward(model, prefix_sharing="off")
    exact = gradients(model, batch)
    sharing = install_forward(model, gradient_checkpointing=checkpoints)
    assert (sharing.layout, sharing.trained) == ("tree", "tree"), sharing.line()
    if checkpoints:
        checkpoint(model)
    for name, found in gradients(model, batch).items():
        scale = float(exact[name].abs().max().clamp(min=1e-3))
        torch.testing.assert_close(found / scale, exact[name] / scale, atol=tolerance, rtol=0, msg=name)


def test_a_model_is_moved_before_anything_is_tried_out_on_it():
    """To the device on which it will run; not if loading it decided where its parts are."""
    model = make_model()
    place(model, torch.device("meta"))
    assert model.device.type == "meta"
    parts = make_model()
    parts.hf_device_map = {"": "cpu"}
    place(parts, torch.device("meta"))
    assert parts.device.type == "cpu"
