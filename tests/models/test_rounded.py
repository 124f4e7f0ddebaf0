"""Rows are rounded up to sizes that come again, and nobody notices."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from test_sharing import assert_same, gradients, make_batch, make_family

from burnish.models import rounded
from burnish.models.forward import install_forward
from burnish.models.introspect import trunk_of
from burnish.models.layout import LAYOUTS, run_rows
from burnish.models.rounded import round_up
from burnish.models.tree import make_tree

PROMPTS, ANSWERS = (40, 3, 21), ((0, 30), (1, 25), (0, 1), (2, 29))  # 149 tokens
FEW_TOKENS = (2, 1), ((0, 40), (1, 43), (0, 47))  # 133: what is missing is three prompts of two tokens


def test_sizes_are_few_and_little_larger():
    sizes = [round_up(size) for size in range(4097)]
    assert sizes[:65] == list(range(65))
    assert all(size <= found < size + max(size / 32, 1) for size, found in enumerate(sizes))
    assert all(round_up(found) == found for found in sizes)
    for less, more in pairwise([64 << n for n in range(7)]):
        assert len({size for size in sizes if less < size <= more}) == 32


@pytest.mark.parametrize("shape", [(PROMPTS, ANSWERS), FEW_TOKENS], ids=["a prompt more", "several"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3_text", "gpt2"])
def test_log_probs_and_gradients_are_those_of_plain_rows(kind, shape):
    """Sliding windows, experts and learned positions among them."""
    model, batch = make_family(kind), make_batch(*shape)
    size = int(batch.prompt_mask.sum() + batch.completion_mask.sum())
    tree = make_tree(batch)
    assert len(tree.source) == round_up(size) > size
    assert tree.prompts.shape[1] == batch.prompt_ids.shape[1], "positions that the model may not have"
    install_forward(model, prefix_sharing="off")
    exact = gradients(model, batch)
    assert install_forward(model).layout == "tree"
    assert_same(gradients(model, batch), exact)


def test_routers_do_not_count_what_rounds_up():
    trunk, batch = trunk_of(make_family("qwen3_moe")), make_batch(PROMPTS, ANSWERS)
    exact, found = (run(trunk, batch, output_router_logits=True) for run in (run_rows, LAYOUTS["tree"]))
    for one, other in zip(found.router_logits, exact.router_logits, strict=True):
        there = exact.attention_mask.flatten().bool()
        torch.testing.assert_close(one[found.attention_mask.flatten().bool()], other[there], atol=1e-5, rtol=1e-5)


def test_the_switch_leaves_sizes_alone(monkeypatch):
    monkeypatch.setattr(rounded, "STEPS", 1 << 60)
    assert len(make_tree(make_batch(PROMPTS, ANSWERS)).source) == 149


def test_rows_of_any_length_meet_few_sizes():
    """Programs that oneDNN keeps, one for each size: 300 batches have at most 64, not 300."""
    sizes = {len(make_tree(make_batch((n,), ((0, n // 2), (0, n // 3)))).source) for n in range(300, 600)}
    assert len(sizes) <= 64
