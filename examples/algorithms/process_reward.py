"""A process reward: each step of an answer is scored where it stands, and its tokens are credited for what follows.

A_t = sum over the steps that end at token t or later of (r - mean) / std,   mean and std over all steps of the group

A step here is an equation, right or wrong. A process reward model in its place returns the same (start, end, reward).

Source: process supervision of GRPO, DeepSeekMath (2402.03300) section 4.1.3.
"""

import re
from bisect import bisect_left, bisect_right
from itertools import accumulate

import torch
from torch import Tensor

from burnish import RewardTable, advantage, reward

EQUATION = re.compile(r"(-?\d+) *([-+]) *(\d+) *= *(-?\d+)")


@reward("equations")
def equations(token_texts: list[list[str]]) -> list:
    """1 for each right equation and -1 for each wrong one, at the tokens from its first to its last character."""

    def steps(pieces: list[str]) -> list | float:
        ends = list(accumulate(map(len, pieces)))
        found = []
        for match in EQUATION.finditer("".join(pieces)):
            left, sign, right, claimed = match.groups()
            is_right = int(left) + int(sign + right) == int(claimed)
            place = bisect_right(ends, match.start()), bisect_left(ends, match.end()) + 1
            found.append((*place, 1.0 if is_right else -1.0))
        return found or 0.0

    return [steps(pieces) for pieces in token_texts]


@advantage("process", per="token", paper="2402.03300")
def process(rewards: RewardTable, prompt_index: Tensor, mask: Tensor, turn_index: Tensor | None) -> Tensor:
    """Normalised rewards of the steps from each token on, (N, T). An answer without a step is one step."""
    total = rewards.total().nan_to_num(0.0)[:, None]  # (N, 1)
    given = torch.zeros_like(mask * total) if rewards.token_rewards is None else rewards.token_rewards  # (N, T)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)  # (N, T): each answer's last token
    steps = given + last * (total - given.sum(1, keepdim=True))  # what belongs to no token is the last step
    is_step = (last | (steps != 0)) & rewards.scored.any(1, keepdim=True)  # (N, T)
    group = (prompt_index[:, None] == prompt_index).to(steps)  # (N, N)
    count = group @ is_step.sum(1, keepdim=True).to(steps)  # (N, 1)
    mean = group @ (steps * is_step).sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(is_step, steps - mean, 0.0)  # (N, T)
    std = (group @ centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return (centred / (std + 1e-4)).flip(1).cumsum(1).flip(1)
