"""Laws of preference losses: `PairLogps` -> (M,), and made-up pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from burnish.registry import Entry
from burnish.testing.contract import Law, impurity, not_finite, same, taken, wrong_gradient
from burnish.types import PairLogps

Loss = Entry[..., Tensor]
SIZES = (1, 2, 3, 5)
EXTREMES = (-1e4, -1e3, 0.0)


def make_pairs() -> Iterator[PairLogps]:
    """Pairs of answers of 1 to 20 tokens, near the reference and far from it, with all that a loss may read."""
    for spread in (0.1, 5.0):
        for size in SIZES:
            generator = torch.Generator().manual_seed(size)

            def uniform(low: float, high: float, *, size: int = size, generator: Any = generator) -> Tensor:
                return low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)

            chosen, rejected = uniform(-20, -10), uniform(-20, -10)
            yield PairLogps(
                chosen=chosen,
                rejected=rejected,
                ref_chosen=chosen + uniform(-spread, spread),
                ref_rejected=rejected + uniform(-spread, spread),
                chosen_length=uniform(10, 20).round(),
                rejected_length=uniform(10, 20).round(),
                chosen_row=torch.arange(size),
                margin=uniform(0.5, 1.5),
                chosen_kl=uniform(0, 1),
                rejected_kl=uniform(0, 1),
            )


def _result(loss: Loss, pair: PairLogps) -> str:
    losses: Any = loss.function(replace(pair, chosen=pair.chosen.clone().requires_grad_()))
    if not isinstance(losses, Tensor):
        return f"it returned {type(losses).__name__}, not a tensor"
    if losses.shape != pair.chosen.shape:
        return (
            f"it returned shape {tuple(losses.shape)} for {len(pair.chosen)} pairs; return one number a pair, unreduced"
        )
    if losses.dtype != pair.chosen.dtype:
        return f"it returned {losses.dtype} for {pair.chosen.dtype}"
    return "" if losses.requires_grad else "its result does not depend on the policy's log-probs"


def _purity(loss: Loss, pair: PairLogps) -> str:
    return impurity(loss.function, pair, "pairs")


def _order(loss: Loss, pair: PairLogps) -> str:
    order = torch.arange(len(pair.chosen)).flip(0)
    losses, moved = loss.function(pair), loss.function(taken(pair, order))
    if loss.facts["couples_rows"]:
        return (
            ""
            if same(moved.sum(), losses.sum())
            else f"the sum is {losses.sum():.6g}, and {moved.sum():.6g} in reverse"
        )
    return "" if same(moved, losses[order]) else f"losses are {losses.tolist()}, and in reverse {moved.tolist()}"


def _split(loss: Loss, pair: PairLogps) -> str:
    if loss.facts["couples_rows"]:
        return ""
    losses = loss.function(pair)
    for row in range(len(pair.chosen)):
        alone = loss.function(taken(pair, torch.tensor([row])))
        if not same(alone, losses[row : row + 1]):
            return (
                f"the loss of pair {row} is {float(losses[row]):.6g} beside the others, and {float(alone):.6g} alone. "
                "A loss that compares pairs is registered with couples_rows=True"
            )
    return ""


def _gradients(loss: Loss, pair: PairLogps) -> tuple[Tensor, Tensor]:
    """Of the summed loss by chosen and rejected, 0 for what it does not read."""
    leaves = [pair.chosen.clone().requires_grad_(), pair.rejected.clone().requires_grad_()]
    total = loss.function(replace(pair, chosen=leaves[0], rejected=leaves[1])).sum()
    by_chosen, by_rejected = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return by_chosen, by_rejected


def _direction(loss: Loss, pair: PairLogps) -> str:
    at_reference = replace(pair, ref_chosen=pair.chosen, ref_rejected=pair.rejected)
    by_chosen, by_rejected = _gradients(loss, at_reference)
    if bool((by_chosen - by_rejected < 0).all()):
        return ""
    return (
        f"where policy is reference, the gradient is {by_chosen.tolist()} by chosen and {by_rejected.tolist()} by "
        "rejected: a step down it does not raise chosen beside rejected. Is a sign turned?"
    )


def _gradcheck(loss: Loss, pair: PairLogps) -> str:
    def of_policy(chosen: Tensor, rejected: Tensor) -> Tensor:
        return loss.function(replace(pair, chosen=chosen, rejected=rejected))

    return wrong_gradient(of_policy, pair.chosen, pair.rejected)


def _extremes(loss: Loss, pair: PairLogps) -> str:
    del pair
    for dtype in (torch.float64, torch.float32):
        grid = torch.cartesian_prod(*[torch.tensor(EXTREMES, dtype=dtype)] * 4)  # (81, 4)
        ones = torch.ones(len(grid), dtype=dtype)
        chosen, rejected, ref_chosen, ref_rejected = grid.unbind(1)
        extreme = PairLogps(
            chosen=chosen,
            rejected=rejected,
            ref_chosen=ref_chosen,
            ref_rejected=ref_rejected,
            chosen_length=ones,
            rejected_length=1000 * ones,
            chosen_row=torch.arange(len(grid)),
            margin=ones,
            chosen_kl=1e4 * ones,
            rejected_kl=ones,
        )
        results = {
            "the loss": loss.function(extreme),
            **dict(zip(("chosen", "rejected"), _gradients(loss, extreme), strict=True)),
        }
        for name, values in results.items():
            if (row := not_finite(values)) is not None:
                what = name if name == "the loss" else f"the gradient by {name}"
                return (
                    f"{what} is {float(values[row])} in {dtype} for chosen, rejected, ref_chosen, ref_rejected = "
                    f"{grid[row].tolist()}. Use logsigmoid, log1p or softplus instead of log(sigmoid) or log(1 + exp)"
                )
    return ""


PAIR_LAWS: tuple[Law[Loss, PairLogps], ...] = (
    Law("one number a pair", "The trainer weights and divides them; a mean would be divided twice.", _result),
    Law("no operand is changed", "The same log-probs go on to metrics and to other losses.", _purity),
    Law("order of pairs", "Rows are shuffled and dealt to processes.", _order),
    Law("split into micro-batches", "The size of a micro-batch would change the gradient.", _split),
    Law("direction of the gradient", "Training would prefer what the data rejects.", _direction),
    Law("gradient of the value", "The optimizer would follow something else than what is logged.", _gradcheck),
    Law("finite at extremes", "One long answer would end the run.", _extremes),
)
