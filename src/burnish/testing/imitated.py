"""Laws of supervised losses: the log-probs (N, T) of answers to imitate -> (N, T), and made-up answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burnish.registry import Entry
from burnish.testing.contract import Law, impurity, not_finite, same

Loss = Entry[..., Tensor]
SHAPES = ((1, 1), (1, 3), (3, 4))
EXTREMES = (0.0, -1e-6, -50.0, -1e4)


@dataclass(frozen=True, eq=False)
class Imitated:
    """Answers to imitate.

    Attributes:
        logps: (N, T) of their tokens; exactly 0 where nothing is trained, as every forward has it.
    """

    logps: Tensor


def make_imitated() -> Iterator[Imitated]:
    """Answers of several lengths, likely and unlikely."""
    for spread in (0.5, 5.0):
        for rows, length in SHAPES:
            generator = torch.Generator().manual_seed(10 * rows + length)
            logps = -0.1 - spread * torch.rand(rows, length, generator=generator, dtype=torch.float64)
            yield Imitated(torch.where(torch.arange(length) < torch.arange(length, 0, -1)[:rows, None], logps, 0.0))


def _loss(loss: Loss, logps: Tensor) -> Tensor:
    return loss.function(logps)


def _gradient(loss: Loss, logps: Tensor) -> Tensor:
    leaf = logps.clone().requires_grad_()
    (found,) = torch.autograd.grad(_loss(loss, leaf).sum(), leaf)
    return found


def _result(loss: Loss, case: Imitated) -> str:
    losses: Any = _loss(loss, case.logps.clone().requires_grad_())
    if not isinstance(losses, Tensor):
        return f"it returned {type(losses).__name__}, not a tensor"
    if losses.shape != case.logps.shape:
        wanted = tuple(case.logps.shape)
        return f"it returned shape {tuple(losses.shape)} for {wanted}; return one number a token, unreduced"
    return "" if losses.requires_grad else "its result does not depend on the policy's log-probs"


def _purity(loss: Loss, case: Imitated) -> str:
    return impurity(lambda own: _loss(loss, own.logps), case, "answers")


def _padding(loss: Loss, case: Imitated) -> str:
    losses = _loss(loss, case.logps)
    wider = _loss(loss, torch.nn.functional.pad(case.logps, (0, 2)))[:, :-2]
    if same(wider, losses):
        return ""
    return f"losses are {losses.tolist()}, and {wider.tolist()} with two more columns of padding"


def _split(loss: Loss, case: Imitated) -> str:
    losses = _loss(loss, case.logps)
    for row in range(len(losses)):
        alone = _loss(loss, case.logps[row : row + 1])
        if not same(alone, losses[row : row + 1]):
            return f"answer {row} has losses {losses[row].tolist()} beside the others, and {alone[0].tolist()} alone"
    return ""


def _direction(loss: Loss, case: Imitated) -> str:
    gradient = _gradient(loss, case.logps)
    if bool((gradient[case.logps < 0] < 0).all()):
        return ""
    return f"the gradient is {gradient.tolist()}; it is below 0 for every trained token. Is a sign turned?"


def _extremes(loss: Loss, case: Imitated) -> str:
    del case
    for dtype in (torch.float64, torch.float32):
        logps = torch.tensor(EXTREMES, dtype=dtype)[:, None]
        for name, found in {"loss": _loss(loss, logps), "gradient": _gradient(loss, logps)}.items():
            if (row := not_finite(found)) is not None:
                return f"the {name} is {float(found[row])} in {dtype} for a log-prob of {EXTREMES[row]:g}"
    return ""


IMITATED_LAWS: tuple[Law[Loss, Imitated], ...] = (
    Law("a number a token", "The trainer weights and divides them once over the step.", _result),
    Law("no operand is changed", "The same log-probs go on to metrics.", _purity),
    Law("padding", "Answers of one step have different lengths.", _padding),
    Law("split into micro-batches", "The size of a micro-batch would change the gradient.", _split),
    Law("direction of the gradient", "What is to be imitated would become less likely.", _direction),
    Law("finite at extremes", "One token that the policy finds impossible would end the run.", _extremes),
)
