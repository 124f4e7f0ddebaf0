"""The round as a whole, over all ranks: what baselines, normalisations and statistics are made of.

Every rank holds whole groups and the same number of prompts. Rewards and masks of all ranks are gathered, every rank
computes the same numbers, and takes the part of its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.runtime.distributed import gather_rows, largest_over_ranks, world
from burnish.types import RewardTable, RolloutBatch, wide

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


@dataclass(frozen=True, kw_only=True)
class WholeRound:
    """The rewards and masks of all S answers of a round.

    Attributes:
        rewards: (S, F) of all ranks, in rank order: what advantages are made of.
        returned: (S, F) what the functions returned, before anything was taken off it; without rewards of tokens.
        prompt_index: (S,) the group of each answer, counted over all ranks.
        mask: (S, T) the trained tokens, T of the longest answer of any rank.
        turn_index: (S, T) the turn of each token, or None.
        row_id: (S,) the row of the data set of each.
        start: where this rank's answers begin.
        num_rows: this rank's answers.
    """

    rewards: RewardTable
    returned: RewardTable
    prompt_index: Int[Tensor, "S"]
    mask: Bool[Tensor, "S T"]
    turn_index: Int[Tensor, "S T"] | None
    row_id: Int[Tensor, "S"]
    start: int
    num_rows: int

    def solve_rates(self, solved_reward: float) -> dict[int, float]:
        """The share of right answers, those that were given at least `solved_reward`, by row of the data set."""
        right = is_solved(self.returned.total(), solved_reward)  # (S,)
        rates: dict[int, list[bool]] = {}
        for row, is_right in zip(self.row_id.tolist(), right.tolist(), strict=True):
            rates.setdefault(row, []).append(is_right)
        return {row: sum(flags) / len(flags) for row, flags in rates.items()}

    def mine(self, values: Tensor) -> Tensor:
        """The part of this rank, of (S, ...) values."""
        return values[self.start : self.start + self.num_rows]


def gather_round(rewards: RewardTable, batch: RolloutBatch, *, returned: RewardTable | None = None) -> WholeRound:
    """Every rank's rewards and masks; one size and a few tensors cross the processes.

    Args:
        rewards: of this rank, which advantages are made of.
        batch: this rank's answers.
        returned: what the functions returned, if that is something else.
    """
    rank, size = world()
    device = batch.completion_ids.device
    own_rewards = _to(rewards, device)
    own_returned = replace(own_rewards if returned is None else _to(returned, device), token_rewards=None)
    if size == 1:
        return WholeRound(
            rewards=own_rewards,
            returned=own_returned,
            prompt_index=batch.prompt_index,
            mask=batch.loss_mask,
            turn_index=batch.turn_index,
            row_id=batch.row_id,
            start=0,
            num_rows=len(batch),
        )
    num_prompts, width = len(batch.prompt_ids), batch.loss_mask.shape[1]
    longest = largest_over_ranks(width, device)
    gathered, start = gather_rows(torch.cat([own_rewards.rewards, own_returned.rewards], dim=1))
    columns, given = gathered.split([len(rewards.names), len(own_returned.names)], dim=1)  # (S, F) each
    index = batch.prompt_index + rank * num_prompts  # (N,)
    names, _ = gather_rows(torch.stack([index, batch.row_id], dim=1))  # (S, 2)
    turns = batch.turn_index if batch.turn_index is not None else torch.zeros_like(batch.completion_ids)
    tokens = None
    if largest_over_ranks(int(rewards.token_rewards is not None), device):
        own = own_rewards.token_rewards
        tokens = gather_rows(_widened(columns.new_zeros(len(batch), width) if own is None else own, longest))[0]
    return WholeRound(
        rewards=replace(own_rewards, rewards=columns, token_rewards=tokens),
        returned=replace(own_returned, rewards=given),
        prompt_index=names[:, 0],
        row_id=names[:, 1],
        mask=gather_rows(_widened(batch.loss_mask.long(), longest))[0].bool(),
        turn_index=gather_rows(_widened(turns, longest))[0],
        start=start,
        num_rows=len(batch),
    )


def is_solved(totals: Tensor, at_least: float) -> Tensor:
    """Whether a total counts as right; 0.9 + 0.1 of float32 is 1.

    >>> is_solved(torch.tensor([0.9, 1.0]) + torch.tensor([0.1, 0.0]), 1.0)
    tensor([True, True])
    """
    return totals >= at_least - 1e-6 * max(1.0, abs(at_least))


def _to(rewards: RewardTable, device: torch.device) -> RewardTable:
    """On a device, and in float64 where it has it: baselines do not depend on the order of the ranks' rows."""
    tokens = None if rewards.token_rewards is None else wide(rewards.token_rewards.to(device))
    return replace(
        rewards,
        rewards=wide(rewards.rewards.to(device)),
        weights=wide(rewards.weights.to(device)),
        token_rewards=tokens,
    )


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
