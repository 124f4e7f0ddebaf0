"""The blocks of attention over a tree: who is computed together, and that the whole is softmax over who sees whom."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from test_flash import way  # noqa: F401  # a fixture
from test_sharing import make_batch
from transformers import AttentionInterface

from burnish.models import attention
from burnish.models.flex import who_sees
from burnish.models.spans import Sequences, alike, make_spans
from burnish.models.tree import TokenTree, make_tree

HEADS, GROUPS, WIDTH = 4, 2, 8


def ragged() -> TokenTree:
    """Prompts of 70, 64, 2, 30 and 5 tokens; the fourth has an empty answer only, the last a long one and none."""
    answers = ((0, 50), (0, 3), (1, 48), (1, 1), (2, 60), (3, 1), (4, 90), (4, 1))
    batch = make_batch((70, 64, 2, 30, 5), answers)
    mask = batch.completion_mask.clone()
    mask[[5, 7]] = False
    return make_tree(replace(batch, completion_mask=mask, loss_mask=mask))


def states(size: int, heads: int, shift: float) -> torch.Tensor:
    """(1, heads, S, D) in float64, with a gradient."""
    numbers = torch.arange(size * heads * WIDTH, dtype=torch.float64)
    return (numbers * 0.37 + shift).sin().view(1, heads, size, WIDTH).mul(2).requires_grad_()


def in_the_open(query, key, value, tree: TokenTree, window: int | None, scale: float) -> torch.Tensor:
    """Softmax over everything that a token sees, by its definition: one mask of the whole row."""
    places = torch.arange(len(tree.source))
    seen = who_sees(tree, window)(None, None, places[:, None], places[None])  # (S, S)
    key, value = (each.repeat_interleave(HEADS // GROUPS, 1) for each in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~seen, -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 7, 1000], ids=["all", "near", "wider than the row"])
@pytest.mark.parametrize("free_padding", [0, 16, 1 << 30], ids=["an eighth", "as it comes", "one block"])
@pytest.mark.parametrize("size_of_scores", [0.3, 300], ids=["", "very sure"])
@pytest.mark.usefixtures("way")
def test_values_and_gradients_are_those_of_one_softmax(window, free_padding, size_of_scores, monkeypatch):
    monkeypatch.setattr("burnish.models.spans.FREE_PADDING", free_padding)
    tree = ragged()
    size = len(tree.source)
    inputs = [states(size, HEADS, 0.1), states(size, GROUPS, 0.5), states(size, GROUPS, 0.9)]
    found = AttentionInterface()[attention.NAME](
        torch.nn.Identity(), *inputs, None, scaling=size_of_scores, sliding_window=window, token_tree=tree
    )[0]
    exact = in_the_open(*inputs, tree, window, size_of_scores)
    torch.testing.assert_close(found, exact, atol=1e-12 * max(1.0, size_of_scores), rtol=1e-10)
    factors = torch.arange(found.numel(), dtype=torch.float64).cos().view_as(found)
    for own, other in zip(
        torch.autograd.grad(found, inputs, factors), torch.autograd.grad(exact, inputs, factors), strict=True
    ):
        torch.testing.assert_close(own, other, atol=1e-12 * max(1.0, size_of_scores**2), rtol=1e-10)


def test_sequences_of_about_one_length_are_together():
    """An eighth of the longest, or 16 tokens: 100 and 84, not 83; 800 and 700, not 699. In the order of the row."""
    assert alike([(83,), (84,), (0,), (100,)]) == [[1, 3], [0]]
    assert alike([(699,), (700,), (800,)]) == [[1, 2], [0]]


def test_sequences_are_together_only_if_their_keys_are_too():
    """Keys of 100 and 10 are apart; without any key nothing is computed."""
    assert alike([(50, 100), (50, 10), (50, 0)]) == [[0], [1]]


def test_a_ragged_tree_computes_few_scores_that_nobody_needs():
    """Answers of 50, 3, 48, 1, 60 and 90 tokens are three blocks, [90], [50, 48, 60] and [3, 1], not one of 6 x 90."""
    spans = make_spans(ragged(), None)
    shapes = [[tuple(block.queries.places.shape) for block in span.blocks] for span in spans]
    assert shapes[0] == [(2, 70), (1, 30), (3, 5)], "the last one of what rounds the row up"
    assert shapes[2] == [(1, 90), (3, 60), (2, 3)]


def test_sequences_of_one_length_are_not_copied():
    """Two prompts of 8 and four answers of 5: what attention takes lies where the row does."""
    tree = make_tree(make_batch((8, 8), ((0, 5), (0, 5), (1, 5), (1, 5))))
    row = torch.zeros(len(tree.source), HEADS, WIDTH)
    for span in make_spans(tree, None):
        (block,) = span.blocks
        assert span.queries.places is None
        assert span.keys.places is None
        for sequences in (block.queries, block.keys):
            assert sequences.take(row).untyped_storage().data_ptr() == row.untyped_storage().data_ptr()


def test_padding_is_what_is_asked_for():
    """Sequences at 2 and 7, of three tokens and one, of a row of the numbers of its places."""
    row = torch.arange(10.0)[:, None, None]  # (S, 1, 1)
    sequences = Sequences.of([2, 7], [3, 1], row.device)
    assert sequences.take(row, padding=0.0).flatten(1).tolist() == [[2, 3, 4], [7, 0, 0]]
