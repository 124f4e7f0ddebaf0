"""The contract of losses: of pairs, of sampled tokens, of scores, of judged answers, and of answers to imitate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from burnish.losses import (
    policy_losses,
    preference_losses,
    reward_losses,
    supervised_losses,
    unpaired_losses,
)
from burnish.registry import Entry, Table
from burnish.testing.contract import Law, assert_laws, shown
from burnish.testing.imitated import IMITATED_LAWS, make_imitated
from burnish.testing.judged import JUDGED_LAWS, make_judged
from burnish.testing.pairs import PAIR_LAWS, make_pairs
from burnish.testing.scores import SCORE_LAWS, make_scores
from burnish.testing.tokens import TOKEN_LAWS, make_tokens

IMITATED = "logps"  # the name of the operand that is no parcel
# What a loss takes -> the table of such losses, their laws and cases.
KINDS: dict[str, tuple[Table[..., Any], tuple[Law[Any, Any], ...], Callable[[], Iterator[Any]]]] = {
    "PairLogps": (preference_losses, PAIR_LAWS, make_pairs),
    "PolicyTokens": (policy_losses, TOKEN_LAWS, make_tokens),
    "PairScores": (reward_losses, SCORE_LAWS, make_scores),
    "JudgedLogps": (unpaired_losses, JUDGED_LAWS, make_judged),
    IMITATED: (supervised_losses, IMITATED_LAWS, make_imitated),
}


def assert_loss_contract(loss: Callable[..., Any], **hyper_parameters: Any) -> None:
    """A preference, policy or reward loss, or one of single answers, keeps the laws of losses.

    The shape of its result; no operand is changed; the order of rows does not matter; a step may be cut into
    micro-batches; padding does not matter; the gradient is that of the value, in float64; it points the right way; and
    all is finite where log-probs are extreme.

    Args:
        loss: a function whose first parameter is annotated `PairLogps`, `PolicyTokens`, `PairScores` or `JudgedLogps`,
            or is called `logps`, (N, T) of answers to imitate; registered or not. The facts that a registered one
            states are respected (`couples_rows`, `ratio`, `aggregation`).
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
    first = next(iter(inspect.signature(loss).parameters.values()), None)
    annotation = None if first is None else first.annotation
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if name in KINDS:
        return name
    if first is not None and first.name == IMITATED:
        return IMITATED
    parcels = [kind for kind in KINDS if kind != IMITATED]
    raise TypeError(
        f"the first parameter of {loss} is annotated {name!r}; a loss takes one of {', '.join(parcels)}, or is "
        f"supervised and calls it {IMITATED}. Right: def my_loss(pair: PairLogps, *, beta: float) -> Tensor"
    )
