"""Laws of reward losses: `PairScores` -> (M,) or (N,), and made-up scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from burnish.registry import Entry
from burnish.testing.contract import Law, impurity, not_finite, same, wrong_gradient
from burnish.types import PairScores

Loss = Entry[..., Tensor]
SIZES = (1, 2, 4)


def make_scores() -> Iterator[PairScores]:
    """Pairs of two answers each, near each other and apart, with margins and targets."""
    for spread in (0.5, 4.0):
        for size in SIZES:
            generator = torch.Generator().manual_seed(size)
            scores = spread * torch.randn(2 * size, generator=generator, dtype=torch.float64)
            yield PairScores(
                scores=scores,
                pairs=torch.arange(2 * size).view(2, size).T,
                margin=torch.linspace(0.1, 0.4, size, dtype=torch.float64),
                targets=scores.roll(1),
            )


def _gradient(loss: Loss, scores: PairScores) -> Tensor:
    leaf = scores.scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss.function(replace(scores, scores=leaf)).sum(), leaf)
    return found


def _result(loss: Loss, scores: PairScores) -> str:
    losses = loss.function(scores)
    expected = len(scores.scores) if loss.facts["per"] == "row" else len(scores.pairs)
    if losses.shape != (expected,):
        return f"it returned shape {tuple(losses.shape)}; averaged over each {loss.facts['per']}, it is ({expected},)"
    return ""


def _purity(loss: Loss, scores: PairScores) -> str:
    return impurity(loss.function, scores, "scores")


def _order(loss: Loss, scores: PairScores) -> str:
    count = len(scores.scores)
    back = torch.arange(count).flip(0)
    assert scores.margin is not None
    assert scores.targets is not None
    moved = PairScores(
        scores=scores.scores[back],
        pairs=(count - 1 - scores.pairs).flip(0),
        margin=scores.margin.flip(0),
        targets=scores.targets[back],
    )
    found, expected = _gradient(loss, moved), _gradient(loss, scores)[back]
    return "" if same(found, expected) else f"gradients in reverse order are {found.tolist()}, not {expected.tolist()}"


def _direction(loss: Loss, scores: PairScores) -> str:
    if loss.facts["per"] == "row":
        return ""
    even = replace(scores, scores=torch.zeros_like(scores.scores))
    gradient = _gradient(loss, even)
    lead = gradient[scores.pairs[:, 0]] - gradient[scores.pairs[:, 1]]
    return (
        ""
        if bool((lead < 0).all())
        else f"at equal scores a step down the gradient {gradient.tolist()} prefers the other row"
    )


def _gradcheck(loss: Loss, scores: PairScores) -> str:
    def of_scores(values: Tensor) -> Tensor:
        return loss.function(replace(scores, scores=values))

    return wrong_gradient(of_scores, scores.scores)


def _extremes(loss: Loss, scores: PairScores) -> str:
    for dtype in (torch.float64, torch.float32):
        far = (1e4 * scores.scores.sign()).to(dtype)
        assert scores.margin is not None
        extreme = replace(scores, scores=far, margin=scores.margin.to(dtype), targets=-far)
        for name, values in {"loss": loss.function(extreme), "gradient": _gradient(loss, extreme)}.items():
            if not_finite(values) is not None:
                return f"the {name} is not finite in {dtype} for scores of {far.tolist()}"
    return ""


SCORE_LAWS: tuple[Law[Loss, PairScores], ...] = (
    Law("one number a unit", "The trainer weights and divides them; a mean would be divided twice.", _result),
    Law("no operand is changed", "The same scores go on to metrics and to other losses.", _purity),
    Law("order of pairs", "Rows are shuffled and dealt to processes.", _order),
    Law("direction of the gradient", "The model would prefer what the data rejects.", _direction),
    Law("gradient of the value", "The optimizer would follow something else than what is logged.", _gradcheck),
    Law("finite at extremes", "One answer with a large score would end the run.", _extremes),
)
