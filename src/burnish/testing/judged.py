"""Laws of losses of answers that were each judged by itself: `JudgedLogps` -> (N,), and made-up answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from burnish.registry import Entry
from burnish.testing.contract import Law, impurity, not_finite, same, taken, wrong_gradient
from burnish.types import JudgedLogps

Loss = Entry[..., Tensor]
SIZES = (1, 2, 3, 5)
EXTREMES = (-1e4, -1e3, 0.0)


def make_judged() -> Iterator[JudgedLogps]:
    """Answers near the reference and far from it, good and bad in turn; the first case is one good answer."""
    for spread in (0.1, 5.0):
        for size in SIZES:
            generator = torch.Generator().manual_seed(size)
            logps, distance = torch.rand(2, size, generator=generator, dtype=torch.float64)
            yield JudgedLogps(
                logps=-20 + 10 * logps,
                ref_logps=-20 + 10 * logps + spread * (distance - 0.5),
                is_desirable=torch.arange(size) % 2 == 0,
                kl=torch.full((size,), 0.4, dtype=torch.float64),
            )


def _gradient(loss: Loss, judged: JudgedLogps) -> Tensor:
    leaf = judged.logps.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss.function(replace(judged, logps=leaf)).sum(), leaf)
    return found


def _result(loss: Loss, judged: JudgedLogps) -> str:
    losses: Any = loss.function(replace(judged, logps=judged.logps.clone().requires_grad_()))
    if not isinstance(losses, Tensor):
        return f"it returned {type(losses).__name__}, not a tensor"
    if losses.shape != judged.logps.shape:
        count = len(judged.logps)
        return f"it returned shape {tuple(losses.shape)} for {count} answers; return one number an answer, unreduced"
    return "" if losses.requires_grad else "its result does not depend on the policy's log-probs"


def _purity(loss: Loss, judged: JudgedLogps) -> str:
    return impurity(loss.function, judged, "answers")


def _order(loss: Loss, judged: JudgedLogps) -> str:
    back = torch.arange(len(judged.logps)).flip(0)
    losses, moved = loss.function(judged), loss.function(taken(judged, back))
    return "" if same(moved, losses[back]) else f"losses are {losses.tolist()}, and in reverse {moved.tolist()}"


def _split(loss: Loss, judged: JudgedLogps) -> str:
    losses = loss.function(judged)
    for row in range(len(losses)):
        alone = loss.function(taken(judged, torch.tensor([row])))
        if not same(alone, losses[row : row + 1]):
            return (
                f"the loss of answer {row} is {float(losses[row]):.6g} beside the others, and {float(alone):.6g} "
                "alone. What is of the whole step is in `kl`"
            )
    return ""


def _direction(loss: Loss, judged: JudgedLogps) -> str:
    gradient = _gradient(loss, replace(judged, ref_logps=judged.logps))
    if bool((torch.where(judged.is_desirable, -gradient, gradient) > 0).all()):
        return ""
    return (
        f"where policy is reference, the gradient is {gradient.tolist()}; it is below 0 for desirable answers and "
        "above 0 for the others. Is a sign turned?"
    )


def _gradcheck(loss: Loss, judged: JudgedLogps) -> str:
    return wrong_gradient(lambda logps: loss.function(replace(judged, logps=logps)), judged.logps)


def _extremes(loss: Loss, judged: JudgedLogps) -> str:
    del judged
    for dtype in (torch.float64, torch.float32):
        values = torch.tensor(EXTREMES, dtype=dtype)
        grid = torch.cartesian_prod(values, values, torch.tensor([0.0, 1e4], dtype=dtype), values[-2:])  # (36, 4)
        extreme = JudgedLogps(logps=grid[:, 0], ref_logps=grid[:, 1], kl=grid[:, 2], is_desirable=grid[:, 3] < 0)
        for name, found in {"loss": loss.function(extreme), "gradient": _gradient(loss, extreme)}.items():
            if (row := not_finite(found)) is not None:
                judgement = "a desirable" if bool(extreme.is_desirable[row]) else "an undesirable"
                return (
                    f"the {name} is {float(found[row])} in {dtype} for {judgement} answer of logps, ref_logps, kl = "
                    f"{grid[row, :3].tolist()}. Use sigmoid, logsigmoid or softplus instead of exp"
                )
    return ""


JUDGED_LAWS: tuple[Law[Loss, JudgedLogps], ...] = (
    Law("one number an answer", "The trainer weights and divides them; a mean would be divided twice.", _result),
    Law("no operand is changed", "The same log-probs go on to metrics.", _purity),
    Law("order of answers", "Rows are shuffled and dealt to processes.", _order),
    Law("split into micro-batches", "The size of a micro-batch would change the gradient.", _split),
    Law("direction of the gradient", "Answers that were judged good would become less likely.", _direction),
    Law("gradient of the value", "The optimizer would follow something else than what is logged.", _gradcheck),
    Law("finite at extremes", "One long answer would end the run.", _extremes),
)
