"""The contract of losses: of pairs (`PairLogps`), of sampled tokens (`PolicyTokens`) and of scores (`PairScores`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from burnish.losses import policy_losses, preference_losses, reward_losses
from burnish.registry import Entry, Table
from burnish.testing.contract import Law, assert_laws, shown
from burnish.testing.pairs import PAIR_LAWS, make_pairs
from burnish.testing.scores import SCORE_LAWS, make_scores
from burnish.testing.tokens import TOKEN_LAWS, make_tokens

KINDS: dict[str, tuple[Table[..., Any], tuple[Law[Any, Any], ...], Callable[[], Iterator[Any]]]] = {
    "PairLogps": (preference_losses, PAIR_LAWS, make_pairs),
    "PolicyTokens": (policy_losses, TOKEN_LAWS, make_tokens),
    "PairScores": (reward_losses, SCORE_LAWS, make_scores),
}


def assert_loss_contract(loss: Callable[..., Any], **hyper_parameters: Any) -> None:
    """A preference, policy or reward loss keeps the laws of losses.

    The shape of its result; no operand is changed; the order of rows does not matter; a step may be cut into
    micro-batches; padding does not matter; the gradient is that of the value, in float64; it points the right way; and
    all is finite where log-probs are extreme.

    Args:
        loss: a function whose first parameter is annotated `PairLogps`, `PolicyTokens` or `PairScores`, registered or
            not; the facts that a registered one states are respected (`couples_rows`, `ratio`, `aggregation`).
        hyper_parameters: its keyword-only parameters without a default, and those to be tried at another value.

    Raises:
        ContractError: a law is broken; the message says which, and shows the smallest case.
        TypeError: the first parameter says no such type.

    >>> import torch
    >>> from burnish.types import PairLogps
    >>> def squared(pair: PairLogps, *, beta: float):
    ...     return (1 - beta * pair.logratio_diff) ** 2
    >>> assert_loss_contract(squared, beta=0.1)
    """
    table, laws, cases = KINDS[_kind_of(loss)]
    rows = (table[name] for name in table)
    registered: Entry[..., Any] = next((row for row in rows if row.function is loss), table.entry(loss))
    bound = replace(registered, function=partial(loss, **hyper_parameters))
    assert_laws(f"the {table.kind} {table.entry(loss).name}", bound, laws, cases(), show=shown)


def _kind_of(loss: Callable[..., Any]) -> str:
    parameters = list(inspect.signature(loss).parameters.values())
    annotation = parameters[0].annotation if parameters else None
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if name not in KINDS:
        raise TypeError(
            f"the first parameter of {loss} is annotated {name!r}; a loss takes one of "
            f"{', '.join(KINDS)}. Right: def my_loss(pair: PairLogps, *, beta: float) -> Tensor"
        )
    return name
