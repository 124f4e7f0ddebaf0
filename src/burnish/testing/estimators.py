"""The contract of KL estimators: (logps, ref_logps) -> (N, T), and made-up distributions over a few tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from burnish.losses.kl import kl_estimators, kl_loss
from burnish.registry import Entry
from burnish.testing.contract import Law, assert_laws, impurity, not_finite, same, shown, taken, wrong_gradient

Estimator = Entry[..., Tensor]
SHAPES = ((1, 2), (1, 3), (2, 3), (3, 5))
EXTREMES = (-1e4, -50.0, 0.0)
NEAR = 1.0  # nats from the reference, within which an estimator pulls; farther off it may stop


@dataclass(frozen=True, eq=False)
class Tokens:
    """Log-probs of tokens. Each row has every token of a vocabulary once, so that its mean is a sum over the row.

    Attributes:
        logps: (N, V) the policy's; their exponentials sum to 1 in each row.
        ref_logps: (N, V) the reference's.
    """

    logps: Tensor
    ref_logps: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """(N,) the mean of numbers of tokens over the policy's own samples: exact."""
        return (self.logps.exp() * values).sum(1)


def assert_kl_estimator_contract(
    estimator: Callable[..., Tensor], *, unbiased: bool | None = None, never_negative: bool | None = None
) -> None:
    """A KL estimator keeps the laws of estimators.

    One number a token, of that token alone; no operand is changed; 0 where policy and reference agree; a step down it
    takes probability from tokens that the policy favours beside the reference; the gradient is that of the value, in
    float64; all is finite however far apart the log-probs are. What an estimator claims is held to account: that its
    mean over the policy's samples is the KL, exactly, over small vocabularies; that it is never below 0.

    Args:
        estimator: a function (logps, ref_logps) -> (N, T), registered or not.
        unbiased: it claims that its mean is the KL; if None, what its row of the table states.
        never_negative: it claims that no value is below 0; if None, what its row of the table states.

    Raises:
        ContractError: a law is broken; the message says which, and shows the smallest case.

    >>> from burnish.losses.kl import k3
    >>> assert_kl_estimator_contract(k3)
    """
    entry = kl_estimators.entry(estimator)
    given = {"unbiased": unbiased, "never_negative": never_negative}
    claims = {name: claim for name, claim in given.items() if claim is not None}
    stated = replace(entry, facts={**entry.facts, **claims})
    assert_laws(f"the KL estimator {entry.name}", stated, LAWS, make_distributions(), show=shown)


def make_distributions() -> Iterator[Tokens]:
    """Distributions over a few tokens, near the reference and away from it."""
    for spread in (0.3, 2.0):
        for rows, vocabulary in SHAPES:
            generator = torch.Generator().manual_seed(10 * rows + vocabulary)
            logits = torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64)
            policy, reference = (spread * logits).log_softmax(-1)
            yield Tokens(policy, reference)


def _estimate(estimator: Estimator, tokens: Tokens) -> Tensor:
    return estimator.function(tokens.logps, tokens.ref_logps)


def _gradient(estimator: Estimator, tokens: Tokens) -> Tensor:
    """Of each token's estimate by its own log-prob."""
    leaf = tokens.logps.clone().requires_grad_()
    total = _estimate(estimator, replace(tokens, logps=leaf)).sum()
    (found,) = torch.autograd.grad(total, leaf, materialize_grads=True) if total.requires_grad else (leaf * 0,)
    return found.detach()


def _result(estimator: Estimator, tokens: Tokens) -> str:
    found: Any = _estimate(estimator, tokens)
    if not isinstance(found, Tensor):
        return f"it returned {type(found).__name__}, not a tensor"
    if found.shape != tokens.logps.shape:
        wanted = tuple(tokens.logps.shape)
        return f"it returned shape {tuple(found.shape)} for {wanted}; return one number a token, not a sum or a mean"
    return "" if found.dtype == tokens.logps.dtype else f"it returned {found.dtype} for {tokens.logps.dtype}"


def _purity(estimator: Estimator, tokens: Tokens) -> str:
    return impurity(partial(_estimate, estimator), tokens, "tokens")


def _alone(estimator: Estimator, tokens: Tokens) -> str:
    beside = _estimate(estimator, tokens)
    for row, place in torch.cartesian_prod(*map(torch.arange, tokens.logps.shape)).tolist():
        alone = _estimate(estimator, Tokens(*(values[row, place].view(1, 1) for values in vars(tokens).values())))
        if not same(alone[0, 0], beside[row, place]):
            return (
                f"token {place} of row {row} has {float(beside[row, place]):.6g} beside the others, and "
                f"{float(alone):.6g} alone"
            )
    back = torch.arange(len(beside)).flip(0)
    moved = _estimate(estimator, taken(tokens, back))
    return "" if same(moved, beside[back]) else f"in reverse order rows have {moved.tolist()}, not {beside.tolist()}"


def _agreement(estimator: Estimator, tokens: Tokens) -> str:
    found = _estimate(estimator, replace(tokens, ref_logps=tokens.logps))
    return "" if bool((found == 0).all()) else f"where policy and reference agree it is {found.tolist()}, not 0"


def _direction(estimator: Estimator, tokens: Tokens) -> str:
    drift = tokens.logps - tokens.ref_logps
    favoured = (drift > 0) & (drift <= NEAR)
    gradient = _gradient(estimator, tokens)
    if bool((gradient[favoured] > 0).all()):
        return ""
    return (
        f"by the log-probs of tokens that the policy favours beside the reference its gradient is "
        f"{gradient[favoured].tolist()}; it is above 0. Is a sign turned, or something detached?"
    )


def _gradcheck(estimator: Estimator, tokens: Tokens) -> str:
    def of_policy(logps: Tensor) -> Tensor:
        return _estimate(estimator, replace(tokens, logps=logps))

    return wrong_gradient(of_policy, tokens.logps)


def _never_negative(estimator: Estimator, tokens: Tokens) -> str:
    found = _estimate(estimator, tokens)
    if not estimator.facts["never_negative"] or bool((found >= 0).all()):
        return ""
    return f"it claims never_negative, and is {found.tolist()}"


def _unbiased(estimator: Estimator, tokens: Tokens) -> str:
    found, exact = tokens.mean(_estimate(estimator, tokens)), tokens.mean(tokens.logps - tokens.ref_logps)
    if not estimator.facts["unbiased"] or same(found, exact):
        return ""
    return (
        f"it claims to be unbiased, and its mean over the policy is {found.tolist()}, where the KL is {exact.tolist()}"
    )


def _extremes(estimator: Estimator, tokens: Tokens) -> str:
    """Alone, and multiplied by the ratio of policy to old policy, as `kl_loss` does; with their gradients."""
    del tokens
    for dtype in (torch.float64, torch.float32):
        grid = torch.cartesian_prod(*[torch.tensor(EXTREMES, dtype=dtype)] * 3)  # (27, 3): policy, reference, old
        logps, ref_logps, old_logps = (values[:, None] for values in grid.unbind(1))
        leaf = logps.clone().requires_grad_()
        for corrected in (False, True):
            log_ratio = leaf - old_logps if corrected else None
            losses = kl_loss(leaf, ref_logps, estimator=estimator.function, log_ratio=log_ratio)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
            what = "multiplied by the ratio of policy to old policy " if corrected else ""
            for name, values in {"the estimate": losses.detach(), "its gradient": gradient}.items():
                if (row := not_finite(values)) is not None:
                    return (
                        f"{name} {what}is {float(values[row])} in {dtype} for logps, ref_logps, old_logps = "
                        f"{grid[row].tolist()}: bound the exponent, at 40 say"
                    )
    return ""


LAWS: tuple[Law[Estimator, Tokens], ...] = (
    Law("a number a token", "It is added to the loss, or taken off the reward, of each token.", _result),
    Law("no operand is changed", "The same log-probs go on to the loss and to metrics.", _purity),
    Law("each token by itself", "Padding, the order of rows and micro-batches would change the estimate.", _alone),
    Law("no drift, no KL", "A policy that is its reference would be pulled away from it.", _agreement),
    Law("direction of the gradient", "The loss would drive the policy away from the reference.", _direction),
    Law("gradient of the value", "The optimizer would follow something else than what is logged.", _gradcheck),
    Law("never negative", "A distance below 0 would be logged, or paid for as a reward.", _never_negative),
    Law("unbiased", "What is logged as the KL would be another quantity.", _unbiased),
    Law("finite at extremes", "One token that the policy has left behind would end the run.", _extremes),
)
