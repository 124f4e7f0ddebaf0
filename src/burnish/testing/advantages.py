"""The contract of advantages: (RewardTable, prompt_index) -> (N, 1) or (N, T), and made-up rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from burnish.advantages import advantages, compute_advantages
from burnish.testing.contract import Law, assert_laws, same
from burnish.types import RewardTable

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.registry import Entry

    Advantage = Entry[Any, Tensor]

GROUPS = ((1, 2), (2, 2), (3, 4))  # prompts, answers to each


@dataclass(frozen=True, eq=False)
class Round:
    """Rewards of a round, and whose they are."""

    table: RewardTable
    prompt_index: Tensor
    mask: Tensor

    def take(self, rows: Tensor) -> Round:
        """Some of the answers."""
        return Round(self.table.take(rows), self.prompt_index[rows], self.mask[rows])

    def show(self) -> str:
        """For the message."""
        rewards = [[round(value, 3) for value in row] for row in self.table.rewards.tolist()]
        return f"  rewards (N, F) = {rewards}\n  prompt_index (N,) = {self.prompt_index.tolist()}"


def assert_advantage_contract(advantage: Callable[..., Any], **hyper_parameters: Any) -> None:
    """An advantage keeps the laws of advantages.

    The shape of its result, without gradient; the rewards are not changed; the order of answers does not matter, nor
    what the groups are numbered; answers that nothing scored have 0 and change no other; groups of equal rewards teach
    nothing; and better answers of a group have higher advantages.

    Args:
        advantage: a function (rewards: RewardTable, prompt_index, ...) -> (N, 1) or (N, T), registered or not.
        hyper_parameters: its keyword-only parameters without a default, and those to be tried at another value.

    Raises:
        ContractError: a law is broken; the message says which, and shows the smallest case.

    >>> from burnish.advantages import group
    >>> assert_advantage_contract(group, scale_rewards="none")
    """
    rows = (advantages[name] for name in advantages)
    registered = next((row for row in rows if row.function is advantage), advantages.entry(advantage))
    bound = replace(registered, function=partial(advantage, **hyper_parameters))
    assert_laws(f"the advantage {registered.name}", bound, LAWS, make_rounds(), show=Round.show)


def make_rounds() -> Iterator[Round]:
    """Groups in turn, rewards that all differ, of one function and of two."""
    for num_functions in (1, 2):
        for prompts, size in GROUPS:
            count = prompts * size
            generator = torch.Generator().manual_seed(count)
            yield Round(
                table=RewardTable(
                    rewards=torch.randperm(4 * count, generator=generator)[: count * num_functions]
                    .double()
                    .view(count, num_functions)
                    / count,
                    names=tuple(f"r{number}" for number in range(num_functions)),
                    weights=torch.tensor([1.0, 0.5][:num_functions], dtype=torch.float64),
                ),
                prompt_index=torch.arange(count) % prompts,
                mask=torch.arange(3) < torch.randint(1, 4, (count, 1), generator=generator),
            )


def _run(advantage: Advantage, case: Round) -> Tensor:
    return compute_advantages(advantage, case.table, case.prompt_index, case.mask)


def _compared(values: Tensor, mask: Tensor) -> Tensor:
    """With 0 at padding, where (N, T) advantages mean nothing."""
    return torch.where(mask, values, 0.0) if values.shape == mask.shape else values


def _result(advantage: Advantage, case: Round) -> str:
    found = _run(advantage, case)
    return "its result has a gradient: detach it" if found.requires_grad else ""


def _purity(advantage: Advantage, case: Round) -> str:
    before = case.table.rewards.clone()
    first, second = _run(advantage, case), _run(advantage, case)
    if not torch.equal(before, case.table.rewards):
        return "it changed the rewards in place"
    return "" if torch.equal(first, second) else "two calls on the same rewards gave different advantages"


def _order(advantage: Advantage, case: Round) -> str:
    back = torch.arange(len(case.mask)).flip(0)
    moved = case.take(back)
    renamed = replace(moved, prompt_index=100 - 7 * moved.prompt_index)
    found, expected = _run(advantage, renamed), _run(advantage, case)[back]
    if same(_compared(found, moved.mask), _compared(expected, moved.mask)):
        return ""
    return f"advantages are {expected[:, 0].tolist()}, and {found[:, 0].tolist()} in reverse order, groups renumbered"


def _unscored(advantage: Advantage, case: Round) -> str:
    rewards = case.table.rewards.clone()
    rewards[0] = math.nan
    with_hole = replace(case, table=replace(case.table, rewards=rewards))
    rest = torch.arange(1, len(rewards))
    whole, part = _run(advantage, with_hole), _run(advantage, with_hole.take(rest))
    if bool((whole[0] != 0).any()):
        return f"an answer that nothing scored has the advantage {whole[0].tolist()}"
    mask = case.mask[rest]
    if same(_compared(whole[rest], mask), _compared(part, mask)):
        return ""
    beside, alone = whole[rest, 0].tolist(), part[:, 0].tolist()
    return f"beside answer 0, which nothing scored, the others have {beside}, and without it {alone}"


def _no_signal(advantage: Advantage, case: Round) -> str:
    equal = torch.full_like(case.table.rewards, 1 / 3)
    found = _run(advantage, replace(case, table=replace(case.table, rewards=equal)))
    return (
        ""
        if bool((_compared(found, case.mask) == 0).all())
        else f"equal rewards have advantages {found[:, 0].tolist()}"
    )


def _better(advantage: Advantage, case: Round) -> str:
    total = case.table.rewards[:, :1]  # one function decides; the others say the same
    alike = replace(case, table=replace(case.table, rewards=total.expand_as(case.table.rewards).contiguous()))
    found = _run(advantage, alike)[:, 0]
    for group in alike.prompt_index.unique():
        rows = (alike.prompt_index == group).nonzero().squeeze(1)
        order = rows[total[rows, 0].argsort()]
        if not bool((found[order].diff() > 0).all()):
            return f"rewards {total[order, 0].tolist()} of one group have advantages {found[order].tolist()}"
    return ""


LAWS: tuple[Law[Advantage, Round], ...] = (
    Law("a number an answer or token", "They multiply the gradient of each token.", _result),
    Law("no operand is changed", "The same rewards are logged.", _purity),
    Law("order of answers", "Answers are dealt to processes, and groups have any number.", _order),
    Law("answers without a score", "A reward that returns None would count as a bad answer.", _unscored),
    Law("no signal", "Groups whose answers are equally good would move the policy by rounding.", _no_signal),
    Law("better answers", "The policy would learn what is rewarded less.", _better),
)
