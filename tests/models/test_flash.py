"""Attention with its log-sum-exp, by torch's flash attention and in the open, against softmax in float64."""

from __future__ import annotations

import math

import pytest
import torch
from test_sharing import assert_same, gradients, make_batch, make_family

from burnish.models import flash
from burnish.models.flash import Sight, attend, attend_backward, has_flash, runs_flash
from burnish.models.forward import install_forward

BATCH, HEADS, GROUPS, QUERIES, KEYS = 3, 4, 2, 6, 6
SIGHTS = {
    "all": Sight(),
    "before": Sight(later=False),
    "padding": Sight(hidden=torch.arange(KEYS).view(1, 1, 1, -1) >= torch.tensor([6, 4, 1]).view(-1, 1, 1, 1)),
    "window": Sight(hidden=~torch.ones(QUERIES, KEYS, dtype=torch.bool).tril().triu(-2)[None, None]),
}


@pytest.fixture(params=[True, False], ids=["flash", "open"])
def way(request):
    was = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(request.param)
    assert runs_flash("cpu") is (request.param and has_flash())
    yield
    torch.backends.cuda.enable_flash_sdp(was)


def states(width: int, value_width: int, dtype=torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(HEADS, QUERIES, width), (GROUPS, KEYS, width), (GROUPS, KEYS, value_width)]
    return [torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_softmax(query, key, value, sight: Sight, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    repeats = HEADS // GROUPS
    scores = scale * query @ key.repeat_interleave(repeats, 1).mT
    if sight.hidden is not None:
        scores = scores.masked_fill(sight.hidden, -math.inf)
    if not sight.later:
        scores = scores.masked_fill(torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1) @ value.repeat_interleave(repeats, 1), scores.logsumexp(-1, keepdim=True)


@pytest.mark.parametrize("widths", [(8, 8), (8, 5), (5, 8)], ids=["same", "narrow values", "wide values"])
@pytest.mark.parametrize("name", SIGHTS)
def test_it_is_softmax_attention(way, name, widths):
    query, key, value = (tensor.requires_grad_() for tensor in states(*widths))
    exact, exact_lse = by_softmax(query, key, value, SIGHTS[name], 0.4)
    output, lse = attend(query.detach(), key.detach(), value.detach(), SIGHTS[name], 0.4)
    torch.testing.assert_close(output, exact.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(lse, exact_lse.detach(), atol=1e-12, rtol=0)
    factors = torch.linspace(-1, 2, exact.numel(), dtype=exact.dtype).view_as(exact).contiguous()
    expected = torch.autograd.grad(exact, (query, key, value), factors)
    found = attend_backward(factors, query.detach(), key.detach(), value.detach(), output, lse, SIGHTS[name], 0.4)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.03)])
def test_precisions(way, dtype, tolerance):
    """The log-sum-exp is float32 for all of them, and off by less than the rounding of bfloat16 scores."""
    narrow = states(8, 8, dtype)
    exact, exact_lse = by_softmax(*(tensor.double() for tensor in narrow), SIGHTS["padding"], 0.4)
    output, lse = attend(*narrow, SIGHTS["padding"], 0.4)
    assert (output.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(output.double(), exact, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-5, rtol=0)


def test_keys_in_two_parts_are_one_attention(way):
    """Outputs by their log-sum-exps, and gradients of each part from those of the whole."""
    query, key, value = (tensor.requires_grad_() for tensor in states(8, 8))
    exact, _ = by_softmax(query, key, value, Sight(), 0.4)
    factors = torch.linspace(-1, 2, exact.numel(), dtype=exact.dtype).view_as(exact).contiguous()
    _, of_keys, of_values = torch.autograd.grad(exact, (query, key, value), factors)
    query, key, value = (tensor.detach() for tensor in (query, key, value))
    parts = [(key[:, :, keys], value[:, :, keys]) for keys in (slice(0, 2), slice(2, KEYS))]
    (one, one_lse), (two, two_lse) = (attend(query, *part, Sight(), 0.4) for part in parts)
    lse = torch.logaddexp(one_lse, two_lse)
    output = (one_lse - lse).exp() * one + (two_lse - lse).exp() * two
    torch.testing.assert_close(output, exact.detach(), atol=1e-12, rtol=0)
    found = [attend_backward(factors, query, *part, output, lse, Sight(), 0.4) for part in parts]
    torch.testing.assert_close(torch.cat([grads[1] for grads in found], 2), of_keys, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cat([grads[2] for grads in found], 2), of_values, atol=1e-12, rtol=0)


def test_a_query_that_sees_nothing(way):
    """Gives zeros, weighs nothing beside other keys, and passes no gradient on."""
    query, key, value = states(8, 8)
    sight = Sight(hidden=torch.tensor([True, False, False]).view(-1, 1, 1, 1).expand(-1, 1, 1, KEYS))
    output, lse = attend(query, key, value, sight, 0.4)
    assert torch.equal(output[0], torch.zeros_like(output[0]))
    assert bool((lse[0] == -math.inf).all())
    assert bool(lse[1:].isfinite().all())
    whole = torch.zeros_like(lse)
    grads = attend_backward(torch.ones_like(output), query, key, value, output, whole, sight, 0.4)
    assert all(torch.equal(grad[0], torch.zeros_like(grad[0])) for grad in grads)
    assert all(bool(grad.isfinite().all()) for grad in grads)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text"])
@pytest.mark.parametrize("prompts", [(9, 1, 4), (4, 4, 4)], ids=["ragged", "one length"])
def test_a_model_computes_the_same_with_and_without(kind, prompts):
    """Log-probs and all gradients of a tree, windows included."""
    if not has_flash():
        pytest.skip("this torch has no flash attention on a CPU")
    model, batch = make_family(kind), make_batch(prompts)
    assert install_forward(model, prefix_sharing="tree").layout == "tree"
    found = gradients(model, batch)
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        exact = gradients(model, batch)
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    assert_same(found, exact)


def test_a_torch_whose_operators_say_something_else_is_not_believed(monkeypatch):
    real = flash._forward
    monkeypatch.setattr(
        flash, "_forward", lambda *args, **kwargs: tuple(1.01 * found for found in real(*args, **kwargs))
    )
    assert not has_flash.__wrapped__()
    monkeypatch.setattr(flash, "_forward", None)
    assert not has_flash.__wrapped__()
