from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from burnish.models import head
from burnish.models.head import STATISTICS, score_tokens, tile_rows
from burnish.models.introspect import HeadSpec, logits_of

SPECS = [HeadSpec(), HeadSpec(scale=0.25), HeadSpec(softcap=2.0), HeadSpec(scale=1.5, softcap=2.0)]
ROWS, VOCABULARY, HIDDEN = 11, 17, 5


@pytest.fixture(params=["again", "kept"])
def small_tiles(monkeypatch, request):
    """Tiles of four rows: eleven rows are two tiles and a part of one; logits computed again, or kept."""
    monkeypatch.setitem(head.KEPT_BYTES, "cpu", 0 if request.param == "again" else 1 << 20)
    monkeypatch.setattr(head, "MIN_TILE_ROWS", 1)
    monkeypatch.setattr(head, "MAX_TILE_ROWS", 4)
    assert tile_rows(VOCABULARY, "cpu") == 4


def make_inputs(*, bias: bool = False, rows: int = ROWS, dtype=torch.float64, scale: float = 1.0):
    """Hidden states, head matrix, bias or None, targets; the first three ask for gradients."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64)
    offset = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (rows,), generator=generator)
    leaves = [tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, offset)]
    return leaves[0], leaves[1], leaves[2] if bias else None, targets


def by_autograd(hidden, weight, bias, targets, *, spec) -> dict[str, torch.Tensor]:
    """The same statistics through all logits at once."""
    logits = logits_of(spec, torch.nn.functional.linear(hidden, weight, bias))  # (R, V)
    log_probs = logits.log_softmax(1)
    own = log_probs.gather(1, targets[:, None]).squeeze(1)
    return {
        "logps": own,
        "entropy": -(log_probs.exp() * log_probs).sum(1),
        "top1": (log_probs.argmax(1) == targets).to(own.dtype),
        "mean_logit": logits.mean(1),
        "sum_p2": log_probs.exp().square().sum(1),
    }


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rows_that_are_rounded_up(spec):
    """101 rows are computed as 102, of which one is nobody's."""
    hidden, weight, bias, targets = make_inputs(bias=True, rows=101)
    with CountedProducts(102) as products:
        found = score_tokens(hidden, weight, bias, targets, spec=spec, needs=frozenset(STATISTICS))
    assert products.count == 1
    assert all(len(values) == 101 for values in found.values())
    exact = by_autograd(hidden, weight, bias, targets, spec=spec)
    for name, values in found.items():
        torch.testing.assert_close(values, exact[name], atol=1e-12, rtol=1e-10)
    factors = torch.linspace(-1, 2, 101, dtype=torch.float64)
    grads = [
        torch.autograd.grad((of["logps"] * factors - of["entropy"]).sum(), (hidden, weight, bias))
        for of in (found, exact)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


def test_by_hand():
    """Logits log 3 and 0: probabilities 3/4 and 1/4, entropy -(3/4 log 3/4 + 1/4 log 1/4) = 0.5623351446,
    mean logit log(3) / 2, sum of squares 9/16 + 1/16.
    """
    hidden = torch.tensor([[math.log(3), 0.0]] * 2, dtype=torch.float64)
    stats = score_tokens(
        hidden, torch.eye(2).double(), None, torch.tensor([0, 1]), spec=HeadSpec(), needs=frozenset(STATISTICS)
    )
    assert stats["logps"].tolist() == pytest.approx([math.log(0.75), math.log(0.25)], abs=1e-12)
    assert stats["entropy"].tolist() == pytest.approx([0.5623351446188083] * 2, abs=1e-12)
    assert stats["top1"].tolist() == [1.0, 0.0]
    assert stats["mean_logit"].tolist() == pytest.approx([math.log(3) / 2] * 2, abs=1e-12)
    assert stats["sum_p2"].tolist() == pytest.approx([0.625] * 2, abs=1e-12)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_agree_with_full_log_softmax(spec, bias):
    inputs = make_inputs(bias=bias)
    stats = score_tokens(*inputs, spec=spec, needs=frozenset(STATISTICS))
    expected = by_autograd(*inputs, spec=spec)
    assert stats.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(stats[name], values, rtol=1e-12, atol=1e-12)
        assert stats[name].requires_grad is (name in ("logps", "entropy"))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("through", ["logps", "entropy", "both"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradients_agree_with_autograd(spec, bias, through):
    """Whatever gradient comes from above, of either sign, and through either output or both."""
    inputs = make_inputs(bias=bias)
    leaves = [leaf for leaf in inputs[:3] if leaf is not None]
    above = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    factors = {"logps": float(through != "entropy"), "entropy": float(through != "logps")}

    def gradients(stats):
        total = factors["logps"] * above[0] @ stats["logps"] + factors["entropy"] * above[1] @ stats["entropy"]
        return torch.autograd.grad(total, leaves)

    mine = gradients(score_tokens(*inputs, spec=spec, needs=frozenset({"entropy"})))
    for one, other in zip(mine, gradients(by_autograd(*inputs, spec=spec)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradcheck(spec):
    hidden, weight, bias, targets = make_inputs(bias=True, rows=6)

    def scored(*leaves):
        stats = score_tokens(*leaves, targets, spec=spec, needs=frozenset({"entropy"}))
        return stats["logps"], stats["entropy"]

    assert torch.autograd.gradcheck(scored, (hidden, weight, bias))


@pytest.mark.usefixtures("small_tiles")
def test_tied_head():
    """The matrix is also the embedding that the hidden states come from: both gradients add up."""
    _, weight, _, targets = make_inputs()
    ids = targets.flip(0)

    def gradient(score):
        hidden = torch.tanh(weight[ids] * 0.7)
        return torch.autograd.grad(score(hidden)["logps"].sum(), weight)[0]

    mine = gradient(lambda hidden: score_tokens(hidden, weight, None, targets, spec=HeadSpec()))
    expected = gradient(lambda hidden: by_autograd(hidden, weight, None, targets, spec=HeadSpec()))
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(frozen):
    inputs = dict(zip(("hidden", "weight", "bias", "targets"), make_inputs(bias=True), strict=True))
    inputs[frozen].requires_grad_(False)
    score_tokens(**inputs, spec=HeadSpec())["logps"].sum().backward()
    expected = {name: name != frozen for name in ("hidden", "weight", "bias")}
    assert {name: inputs[name].grad is not None for name in expected} == expected


def test_values_do_not_depend_on_the_tile(monkeypatch):
    inputs = make_inputs()
    whole = score_tokens(*inputs, spec=HeadSpec(), needs=frozenset(STATISTICS))
    monkeypatch.setattr(head, "MAX_TILE_ROWS", 3)
    monkeypatch.setattr(head, "MIN_TILE_ROWS", 1)
    tiled = score_tokens(*inputs, spec=HeadSpec(), needs=frozenset(STATISTICS))
    for name, values in whole.items():
        torch.testing.assert_close(tiled[name], values, rtol=1e-13, atol=1e-13)


def test_what_is_not_needed_is_not_returned():
    assert score_tokens(*make_inputs(), spec=HeadSpec()).keys() == {"logps"}
    assert score_tokens(*make_inputs(), spec=HeadSpec(), needs=frozenset({"top1"})).keys() == {"logps", "top1"}


def test_unknown_statistic():
    with pytest.raises(ValueError, match=r"unknown token statistics \['entropie'\]; known: entropy, top1, mean_logit"):
        score_tokens(*make_inputs(), spec=HeadSpec(), needs=frozenset({"entropie"}))


def test_no_rows():
    """A micro-batch without trained tokens: empty statistics, zero gradients."""
    hidden, weight, _, targets = make_inputs(rows=0)
    stats = score_tokens(hidden, weight, None, targets, spec=HeadSpec(), needs=frozenset(STATISTICS))
    assert {name: tuple(values.shape) for name, values in stats.items()} == dict.fromkeys(stats, (0,))
    stats["logps"].sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_finite_at_extremes(spec):
    """Logits of thousands in float32: log-probs are ≤ 0, and nothing overflows."""
    inputs = make_inputs(bias=True, dtype=torch.float32, scale=1000.0)
    stats = score_tokens(*inputs, spec=spec, needs=frozenset(STATISTICS))
    assert (stats["logps"] <= 0).all()
    (stats["logps"].sum() + stats["entropy"].sum()).backward()
    for tensor in [*stats.values(), *(leaf.grad for leaf in inputs[:3])]:
        assert tensor.isfinite().all()


def test_float32_is_close_to_float64():
    exact = score_tokens(*make_inputs(bias=True), spec=HeadSpec(), needs=frozenset(STATISTICS))
    single = score_tokens(*make_inputs(bias=True, dtype=torch.float32), spec=HeadSpec(), needs=frozenset(STATISTICS))
    for name, values in exact.items():
        assert single[name].dtype == torch.float32
        torch.testing.assert_close(single[name].double(), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_low_precision_give_float32_statistics(dtype):
    inputs = make_inputs(bias=True, dtype=dtype)
    stats = score_tokens(*inputs, spec=HeadSpec(), needs=frozenset({"entropy"}))
    assert stats["logps"].dtype == stats["entropy"].dtype == torch.float32
    stats["logps"].sum().backward()
    assert all(leaf.grad.dtype == dtype for leaf in inputs[:3])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bfloat16_autocast_is_close_to_float32(spec):
    """Products in bfloat16 (8 bits of mantissa), statistics and gradients of float32 weights in float32."""
    results = []
    for enabled in (False, True):
        inputs = make_inputs(bias=True, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            stats = score_tokens(*inputs, spec=spec, needs=frozenset({"entropy"}))
        (stats["logps"].sum() + stats["entropy"].sum()).backward()
        results.append([stats["logps"].detach(), stats["entropy"].detach(), *(leaf.grad for leaf in inputs[:3])])
    for plain, low in zip(*results, strict=True):
        assert low.dtype == torch.float32
        assert float((low - plain).norm() / plain.norm()) < 0.02
    assert not torch.equal(results[0][0], results[1][0])  # autocast was really on


class WidestTensor(TorchDispatchMode):
    """The largest number of elements of any tensor with a dimension of `width`, except those of the weight's shape."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.width, self.weight_shape, self.elements = width, {width, hidden_size}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self.width in leaf.shape and set(leaf.shape) != self.weight_shape:
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_scratch_does_not_grow_with_the_rows(monkeypatch, autocast):
    """1,000 and 16,000 rows over a vocabulary of 2,053: nothing wider than one tile, forward and backward."""
    vocabulary, hidden_size = 2053, 7
    monkeypatch.setitem(head.KEPT_BYTES, "cpu", 0)
    monkeypatch.setitem(head.TILE_BYTES, "cpu", 100 * 4 * vocabulary)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, requires_grad=True)
    widest = {}
    for rows in (1_000, 16_000):
        hidden = torch.randn(rows, hidden_size, generator=generator, requires_grad=True)
        targets = torch.randint(vocabulary, (rows,), generator=generator)
        with WidestTensor(vocabulary, hidden_size) as seen:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                stats = score_tokens(
                    hidden, weight, None, targets, spec=HeadSpec(softcap=30.0), needs=frozenset(STATISTICS)
                )
            (stats["logps"].sum() + stats["entropy"].sum()).backward()
        widest[rows] = seen.elements
    assert widest == {1_000: 100 * vocabulary, 16_000: 100 * vocabulary}


class CountedProducts(TorchDispatchMode):
    """How many matrix products with a dimension of `width` there are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.count = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.count += any(self.width in leaf.shape for leaf in args)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kept", "frozen", "products"), [(True, False, 3), (False, False, 4), (True, True, 2), (False, True, 3)]
)
def test_matrix_products(monkeypatch, kept, frozen, products):
    """Logits and two gradients, and the logits again where they are not kept; a frozen head has one gradient."""
    monkeypatch.setitem(head.KEPT_BYTES, "cpu", ROWS * VOCABULARY * 4 if kept else ROWS * VOCABULARY * 4 - 1)
    hidden, weight, _, targets = make_inputs()
    weight.requires_grad_(not frozen)
    with CountedProducts(VOCABULARY) as seen:
        score_tokens(hidden, weight, None, targets, spec=HeadSpec())["logps"].sum().backward()
    assert seen.count == products


def test_nothing_is_kept_without_gradient(monkeypatch):
    """A reference's logits are one tile, whatever would fit."""
    monkeypatch.setattr(head, "MAX_TILE_ROWS", 3)
    monkeypatch.setattr(head, "MIN_TILE_ROWS", 1)
    with torch.no_grad(), WidestTensor(VOCABULARY, HIDDEN) as seen:
        score_tokens(*make_inputs(), spec=HeadSpec())
    assert seen.elements == 3 * VOCABULARY


def test_a_second_backward_pass_is_as_the_first():
    """The kept logits became their gradient in the first one."""
    hidden, weight, _, targets = make_inputs()
    total = (score_tokens(hidden, weight, None, targets, spec=HeadSpec())["logps"] ** 2).sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(total, (hidden, weight)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("vocabulary", "rows"), [(259, 1024), (49_152, 341), (151_936, 110), (10_000_000, 64), (16_384, 1024)]
)
def test_tile_rows(vocabulary, rows):
    """64 MiB on the CPU is 2^24 float32 numbers: 2^24 / V rows, between 64 and 1024."""
    assert tile_rows(vocabulary, "cpu") == rows
