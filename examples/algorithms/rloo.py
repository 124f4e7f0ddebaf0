"""RLOO: REINFORCE with the mean reward of the other answers to the prompt as its baseline.

loss = -A log π(y),   A = R - mean of R over the other answers of the group,   log π(y) summed over the tokens of y

Source: Ahmadian et al. (2402.14740) section 3.
"""

import torch
from torch import Tensor

from burnish import PolicyTokens, RewardTable, TokenLoss, advantage, policy_loss


@advantage("leave_one_out", paper="2402.14740")
def leave_one_out(rewards: RewardTable, prompt_index: Tensor) -> Tensor:
    """R minus the mean of the others that were scored, (N, 1); 0 where there are none."""
    total = rewards.total()  # (N,)
    others = (prompt_index[:, None] == prompt_index) & ~torch.eye(len(total), dtype=torch.bool, device=total.device)
    gaps = torch.where(others, total[:, None] - total, torch.nan)  # (N, N): a group of equal rewards gives exact zeros
    return gaps.nanmean(1, keepdim=True).nan_to_num(0.0)


@policy_loss("whole_answer", ratio="none", aggregation="seq_mean_token_sum", paper="2402.14740")
def whole_answer(tokens: PolicyTokens) -> TokenLoss:
    """-A log π of each token; their sum is that of the answer, (N, T)."""
    return TokenLoss(losses=-tokens.advantages * tokens.logps)
