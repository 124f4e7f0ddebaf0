"""Laws of policy losses: `PolicyTokens` -> `TokenLoss`, and made-up tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from burnish.losses.policy import apply_policy_loss, check_policy_loss
from burnish.losses.reduce import reduce_tokens
from burnish.registry import Entry
from burnish.testing.contract import Law, impurity, not_finite, same, taken
from burnish.types import PolicyTokens, TokenLoss

Loss = Entry[..., TokenLoss]
SHAPES = ((1, 1), (1, 3), (2, 3), (4, 5))
MAX_LENGTH = 10


def make_tokens() -> Iterator[PolicyTokens]:
    """Answers of several lengths, on policy and away from it, good and bad, with all that a loss may read."""
    for spread in (0.0, 0.6):
        for rows, length in SHAPES:
            generator = torch.Generator().manual_seed(10 * rows + length)

            def uniform(*shape: int, generator: Any = generator) -> Tensor:
                return torch.rand(*shape, generator=generator, dtype=torch.float64)

            logps = -0.1 - 3 * uniform(rows, length)
            signs = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).repeat(rows, 1)[:rows]
            yield PolicyTokens(
                logps=logps,
                old_logps=logps + spread * (uniform(rows, length) - 0.5),
                advantages=signs * (0.2 + uniform(rows, 1)),
                mask=torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator),
                entropy=uniform(rows, length),
            )


def _losses(loss: Loss, tokens: PolicyTokens) -> Tensor:
    return apply_policy_loss(loss, tokens).losses


def _scalar(loss: Loss, tokens: PolicyTokens) -> Tensor:
    """The loss of a step of these tokens: reduced, and divided once."""
    aggregation = loss.facts["aggregation"]
    losses, per = reduce_tokens(
        _losses(loss, tokens), tokens.mask, aggregation=aggregation, max_completion_length=MAX_LENGTH
    )
    return losses.sum() / (tokens.mask.sum() if per == "token" else tokens.mask.any(1).sum())


def _gradient(loss: Loss, tokens: PolicyTokens) -> Tensor:
    leaf = tokens.logps.clone().requires_grad_()
    (found,) = torch.autograd.grad(_scalar(loss, replace(tokens, logps=leaf)), leaf)
    return found


def _result(loss: Loss, tokens: PolicyTokens) -> str:
    check_policy_loss(loss)
    shapes = (tokens.mask.shape, (len(tokens.mask), 1))
    result = apply_policy_loss(loss, tokens)
    for name, values in {"losses": result.losses, **result.metrics}.items():
        if values.shape not in shapes:
            return f"{name} has shape {tuple(values.shape)}; allowed: {tuple(shapes[0])} or {shapes[1]}"
        if name != "losses" and values.requires_grad:
            return f"the metric {name} has a gradient: detach it"
    return ""


def _purity(loss: Loss, tokens: PolicyTokens) -> str:
    return impurity(partial(_losses, loss), tokens, "tokens")


def _padding(loss: Loss, tokens: PolicyTokens) -> str:
    far = torch.linspace(-900.0, -1.0, tokens.mask.numel(), dtype=torch.float64).view(tokens.mask.shape)
    other = replace(
        tokens,
        logps=torch.where(tokens.mask, tokens.logps, far),
        old_logps=torch.where(tokens.mask, tokens.old_logps, far.flip(1)),
    )
    before, after = _scalar(loss, tokens), _scalar(loss, other)
    if not same(before, after):
        return f"the loss is {float(before):.6g}, and {float(after):.6g} with other numbers outside the mask"
    gradient = _gradient(loss, other)
    if bool((gradient[~tokens.mask] != 0).any()):
        return "tokens outside the mask have a gradient"
    return "" if same(gradient, _gradient(loss, tokens)) else "the gradient changes with numbers outside the mask"


def _order(loss: Loss, tokens: PolicyTokens) -> str:
    order = torch.arange(len(tokens.mask)).flip(0)
    found, expected = _gradient(loss, taken(tokens, order)), _gradient(loss, tokens)[order]
    return "" if same(found, expected) else f"gradients in reverse order are {found.tolist()}, not {expected.tolist()}"


def _split(loss: Loss, tokens: PolicyTokens) -> str:
    losses = _losses(loss, tokens)
    for row in range(len(tokens.mask)):
        alone = _losses(loss, taken(tokens, torch.tensor([row])))
        if not same(alone, losses[row : row + 1]):
            return f"answer {row} has losses {losses[row].tolist()} beside the others, and {alone[0].tolist()} alone"
    return ""


def _on_policy(loss: Loss, tokens: PolicyTokens) -> str:
    fresh = replace(tokens, old_logps=tokens.logps)
    pull = _gradient(loss, fresh) * fresh.advantages
    if bool((pull[fresh.mask] < 0).all()):
        return ""
    return f"at ratio 1 the gradient times the advantage is {pull.tolist()}; it is below 0 for every trained token"


def _direction(loss: Loss, tokens: PolicyTokens) -> str:
    pull = _gradient(loss, tokens) * tokens.advantages
    return (
        "" if bool((pull <= 0).all()) else f"the gradient times the advantage is {pull.tolist()}; it is never above 0"
    )


def _extremes(loss: Loss, tokens: PolicyTokens) -> str:
    del tokens
    logps, old_logps, advantages = torch.cartesian_prod(
        torch.tensor([-1e4, -50.0, 0.0]), torch.tensor([-1e4, -50.0, 0.0]), torch.tensor([-100.0, 0.0, 100.0])
    ).unbind(1)
    for dtype in (torch.float64, torch.float32):
        extreme = PolicyTokens(
            logps=logps[:, None].repeat(1, 2).to(dtype),
            old_logps=old_logps[:, None].repeat(1, 2).to(dtype),
            advantages=advantages[:, None].to(dtype),
            mask=torch.tensor([True, True]).expand(27, 2),
            entropy=torch.ones(27, 2, dtype=dtype),
        )
        for name, values in {"loss": _losses(loss, extreme), "gradient": _gradient(loss, extreme)}.items():
            if (row := not_finite(values)) is not None:
                return (
                    f"the {name} is not finite in {dtype} for logps {float(logps[row])}, old_logps "
                    f"{float(old_logps[row])}, advantage {float(advantages[row])}: bound the exponent of the ratio"
                )
    return ""


TOKEN_LAWS: tuple[Law[Loss, PolicyTokens], ...] = (
    Law("a number a token or answer", "The trainer reduces and divides them once over the step.", _result),
    Law("no operand is changed", "The same tokens go on to the KL and to metrics.", _purity),
    Law("padding", "Answers of one step have different lengths.", _padding),
    Law("order of answers", "Rows are shuffled and dealt to processes.", _order),
    Law("split into micro-batches", "The size of a micro-batch would change the gradient.", _split),
    Law("on policy", "A first step that is no policy gradient learns something else.", _on_policy),
    Law("direction of the gradient", "Good answers would become less likely, or bad ones more.", _direction),
    Law("finite at extremes", "One token that the policy has left behind would end the run.", _extremes),
)
