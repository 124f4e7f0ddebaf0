"""Advantages: the rewards of a round -> what multiplies the gradient of each answer (N, 1) or token (N, T).

The operands are the whole round, of all ranks. An answer that nothing scored is in no baseline, and its advantage is
exactly 0; so is that of an answer whose group gives no signal: one answer, or equal rewards.

Facts of a row: `per` is `row`: called with (rewards, prompt_index); or `token`: called with (rewards, prompt_index,
mask, turn_index) as well. Notation: R = `rewards.total()`, G = answers of a group, mean and std over scored answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from burnish.registry import Table

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from burnish.registry import Entry
    from burnish.types import RewardTable

EPSILON = 1e-4  # beside a standard deviation, as in TRL

advantages: Table[..., Tensor] = Table("advantage", per="row")
advantage = advantages.register


def compute_advantages(
    entry: Entry[Any, Tensor],
    rewards: RewardTable,
    prompt_index: Int[Tensor, "N"],
    mask: Bool[Tensor, "N T"],
    turn_index: Int[Tensor, "N T"] | None = None,
) -> Float[Tensor, "N T1"]:
    """A row on a round, its result checked.

    Args:
        entry: a row of the table, its hyper-parameters bound.
        rewards: of the N answers of the round.
        prompt_index: (N,) the group of each; any whole numbers.
        mask: (N, T) the trained tokens.
        turn_index: (N, T) the turn of each token, or None for one turn.

    Returns:
        (N, 1) or (N, T), 0 for answers that nothing scored.

    Raises:
        ValueError: the function returned another shape, or numbers that are not finite.
    """
    operands = (rewards, prompt_index, mask, turn_index) if entry.facts["per"] == "token" else (rewards, prompt_index)
    result = entry.function(*operands)
    if result.shape not in ((len(mask), 1), mask.shape):
        raise ValueError(
            f"the advantage {entry.name!r} returned shape {tuple(result.shape)} for {len(mask)} answers of up to "
            f"{mask.shape[1]} tokens: return {(len(mask), 1)}, or {tuple(mask.shape)} for one number a token"
        )
    result = torch.where(rewards.scored.any(1)[:, None], result, torch.zeros_like(result))
    if not bool(result.isfinite().all()):
        row = int((~result.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"the advantage {entry.name!r} is not finite for answer {row} of the round, whose rewards are "
            f"{dict(zip(rewards.names, map(float, rewards.rewards[row]), strict=True))}"
        )
    return result


@advantage("group", paper="2402.03300")
def group(
    rewards: RewardTable, prompt_index: Int[Tensor, "N"], *, scale_rewards: str | bool = "group"
) -> Float[Tensor, "N 1"]:
    """GRPO: how much better an answer is than the mean of its group.

    A = (R - mean(group)) / (std + 1e-4),   std of the `group` or of the `batch`; with `none` nothing is divided

    `none` is Dr. GRPO: dividing by the group's std makes prompts that are nearly always or nearly never solved count
    most. std is unbiased. True is `group` and False `none`.

    Source: GRPO (2402.03300) section 4.1.2; `none`: Dr. GRPO (2503.20783); `batch`: Lite PPO (2508.08221).

    >>> import torch
    >>> from burnish.types import RewardTable
    >>> table = RewardTable(rewards=torch.tensor([[1.0], [0.0], [5.0]]), names=("r",), weights=torch.ones(1))
    >>> group(table, torch.tensor([0, 0, 1]), scale_rewards="none")
    tensor([[ 0.5000],
            [-0.5000],
            [ 0.0000]])
    """
    total = rewards.total()[:, None]  # (N, 1)
    groups = Groups(total, prompt_index)
    return groups.centered / _scale(total, groups, scale_rewards)


@advantage("rloo", paper="2402.14740")
def rloo(rewards: RewardTable, prompt_index: Int[Tensor, "N"]) -> Float[Tensor, "N 1"]:
    """Leave-one-out: how much better an answer is than the mean of the others of its group.

    A = R - mean(others) = G / (G - 1) (R - mean(group))

    The baseline does not depend on the answer itself, so that the gradient is unbiased.

    Source: RLOO (2402.14740).
    """
    groups = Groups(rewards.total()[:, None], prompt_index)
    return groups.centered * groups.count / (groups.count - 1).clamp(min=1)


@advantage("gdpo", paper="2601.05242")
def gdpo(rewards: RewardTable, prompt_index: Int[Tensor, "N"]) -> Float[Tensor, "N 1"]:
    """Each reward function is normalised by itself before they are added: none drowns the others by its scale.

    z_f = (r_f - mean(group)) / (std(group) + 1e-4),   s = sum over f of weight_f z_f
    A = (s - mean(batch)) / (std(batch) + 1e-4)

    TRL's `multi_objective_aggregation="normalize_then_sum"`.

    Source: GDPO (2601.05242).
    """
    groups = Groups(rewards.rewards, prompt_index)  # (N, F)
    scores = (groups.centered / (groups.std + EPSILON) * rewards.weights).sum(1, keepdim=True)  # (N, 1)
    scored = rewards.scored.any(1, keepdim=True)
    batch = Groups(torch.where(scored, scores, torch.nan), torch.zeros_like(prompt_index))
    return torch.where(
        groups.varies.any(1, keepdim=True), batch.centered / (batch.std + EPSILON), torch.zeros_like(scores)
    )


@advantage("reinforce_pp", paper="2501.03262")
def reinforce_pp(rewards: RewardTable, prompt_index: Int[Tensor, "N"]) -> Float[Tensor, "N 1"]:
    """REINFORCE++: normalised over the whole round, with no group at all.

    A = (R - mean(batch)) / (std(batch) + 1e-8)

    The paper draws one answer a prompt, `GRPOTrainer` two or more. The former normalises the tokens of a round, each
    with what it still has to pay of the KL; here the answers are normalised, and KL in the reward is part of R.

    Source: REINFORCE++ (2501.03262) eq. 8 to 10, for answers.
    """
    batch = Groups(rewards.total()[:, None], torch.zeros_like(prompt_index))
    return batch.centered / (batch.std + 1e-8)


@advantage("reinforce_pp_baseline", paper="2501.03262")
def reinforce_pp_baseline(rewards: RewardTable, prompt_index: Int[Tensor, "N"]) -> Float[Tensor, "N 1"]:
    """REINFORCE++ with the mean of the group as baseline, and the spread of the whole round as scale.

    A = d / (std(batch of d) + 1e-8),   d = R - mean(group)

    Source: REINFORCE++ (2501.03262) appendix A.
    """
    total = rewards.total()[:, None]  # (N, 1)
    groups = Groups(total, prompt_index)
    differences = torch.where(total.isnan(), torch.nan, groups.centered)
    return groups.centered / (Groups(differences, torch.zeros_like(prompt_index)).std + 1e-8)


@advantage("turn", per="token", paper="2402.03300")
def turn(
    rewards: RewardTable,
    prompt_index: Int[Tensor, "N"],
    mask: Bool[Tensor, "N T"],
    turn_index: Int[Tensor, "N T"] | None,
    *,
    scale_rewards: str | bool = "group",
) -> Float[Tensor, "N T"]:
    """Turn by turn: what an answer still earns from a turn on, against what its group does.

    A_k = (R_k - mean(group)) / (std + 1e-4),   R_k = token_rewards of turn k and later + what belongs to no token

    An answer that ended before turn k stands in the group with what it earned from its last turn on. All tokens of a
    turn have its advantage. Without token_rewards it is `group`. std is that of R_k over the `group`, that of R over
    the `batch`, or none.

    Source: outcome and process rewards of GRPO (2402.03300) section 4.1.3, with a baseline for each turn.
    """
    turns = torch.zeros_like(mask, dtype=torch.long) if turn_index is None else turn_index
    num_turns = int(torch.where(mask, turns, 0).max()) + 1
    turns = turns.clamp(0, num_turns - 1)
    per_token = _token_rewards(rewards, mask)
    per_turn = [torch.where(turns == k, per_token, torch.zeros_like(per_token)).sum(1) for k in range(num_turns)]
    return _returns_to_go(rewards, torch.stack(per_turn, 1), prompt_index, mask, turns, scale_rewards)


@advantage("token", per="token", paper="2402.03300")
def token(
    rewards: RewardTable,
    prompt_index: Int[Tensor, "N"],
    mask: Bool[Tensor, "N T"],
    turn_index: Int[Tensor, "N T"] | None,
    *,
    scale_rewards: str | bool = "group",
) -> Float[Tensor, "N T"]:
    """Token by token: what an answer still earns from a token on, against what its group does from the same place on.

    A_t = (R_t - mean(group)) / (std + 1e-4),   R_t = token_rewards from t on + what belongs to no token

    As `turn`, with every token a turn of its own: for rewards of spans, and for KL in the reward.

    Source: as `turn`.
    """
    del turn_index
    places = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)  # (N, T)
    return _returns_to_go(rewards, _token_rewards(rewards, mask), prompt_index, mask, places, scale_rewards)


def _token_rewards(rewards: RewardTable, mask: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    if rewards.token_rewards is None:
        return torch.zeros(mask.shape, dtype=rewards.rewards.dtype, device=mask.device)
    return rewards.token_rewards


def _returns_to_go(
    rewards: RewardTable,
    step_rewards: Float[Tensor, "N K"],
    prompt_index: Int[Tensor, "N"],
    mask: Bool[Tensor, "N T"],
    steps: Int[Tensor, "N T"],
    scale_rewards: str | bool,
) -> Float[Tensor, "N T"]:
    """Returns from each step on, centred and scaled over the group, at the tokens of the step."""
    total = rewards.total()[:, None]  # (N, 1)
    returns = step_rewards.flip(1).cumsum(1).flip(1) + total - step_rewards.sum(1, keepdim=True)  # (N, K)
    last = torch.where(mask, steps, 0).amax(1, keepdim=True)  # (N, 1)
    places = torch.arange(step_rewards.shape[1], device=mask.device)
    groups = Groups(returns.gather(1, torch.minimum(places, last)), prompt_index)
    return (groups.centered / _scale(total, groups, scale_rewards)).gather(1, steps)


def _scale(values: Float[Tensor, "N K"], groups: Groups, scale_rewards: str | bool) -> Tensor | float:
    """What centred values are divided by."""
    if scale_rewards in ("group", True):
        return groups.std + EPSILON
    if scale_rewards == "batch":
        return Groups(values, torch.zeros_like(groups.of_row)).std + EPSILON
    if scale_rewards in ("none", False):
        return 1.0
    raise ValueError(f"scale_rewards={scale_rewards!r}: it is 'group' (or True), 'batch' or 'none' (or False)")


class Groups:
    """The moments of values (N, K) over the groups of rows, column by column; NaN is in none of them.

    Attributes:
        of_row: (N,) the place of each row's group, counted from 0.
        count: (N, K) values of the row's group that are no NaN.
        mean: (N, K) of them; 0 if there are none.
        std: (N, K) unbiased; 0 for one value.
        varies: (N, K) the group has two different values.
        centered: (N, K) value minus mean; exactly 0 for NaN and where all values of the group are equal.
    """

    def __init__(self, values: Float[Tensor, "N K"], prompt_index: Int[Tensor, "N"]) -> None:
        values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
        self.of_row, num_groups = _numbered(prompt_index)
        known = ~values.isnan()
        members = (self.of_row == torch.arange(num_groups, device=values.device)[:, None]).to(values.dtype)  # (P, N)
        filled = torch.where(known, values, torch.zeros_like(values))
        count = members @ known.to(values.dtype)  # (P, K)
        mean = members @ filled / count.clamp(min=1)
        self.count, self.mean = count[self.of_row], mean[self.of_row]
        self.varies = self._extreme(values, "amax", num_groups) > self._extreme(values, "amin", num_groups)
        self.centered = torch.where(known & self.varies, values - self.mean, torch.zeros_like(values))
        self.std = (members @ self.centered**2 / (count - 1).clamp(min=1)).sqrt()[self.of_row]

    def _extreme(self, values: Float[Tensor, "N K"], reduce: str, num_groups: int) -> Float[Tensor, "N K"]:
        worst = -torch.inf if reduce == "amax" else torch.inf
        start = torch.full((num_groups, values.shape[1]), worst, dtype=values.dtype, device=values.device)
        place = self.of_row[:, None].expand_as(values)
        filled = torch.where(values.isnan(), worst, values)
        return start.scatter_reduce(0, place, filled, reduce)[self.of_row]


def _numbered(prompt_index: Int[Tensor, "N"]) -> tuple[Int[Tensor, "N"], int]:
    """The groups counted from 0, and their number."""
    found = torch.unique(prompt_index, return_inverse=True)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    names, place = cast("tuple[Tensor, Tensor]", found)
    return place, len(names)


def has_signal(rewards: RewardTable, prompt_index: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """Whether the answer's group has two scored answers of different reward; without, nothing can be learnt from it."""
    return Groups(rewards.total()[:, None], prompt_index).varies[:, 0]
