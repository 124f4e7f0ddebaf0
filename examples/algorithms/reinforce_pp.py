"""REINFORCE++: no critic and no group: what a token still earns, KL included, normalised over all tokens of the round.

A_t = (R_t - mean) / std over the tokens of the round,   R_t = reward of the answer - beta sum of KL from token t on

Options: `beta` and `use_kl_in_reward`, so that the KL is part of the rewards; `loss_type: ppo` is its clipped loss.

Source: Hu et al. (2501.03262) eq. 4 to 6.
"""

import torch
from torch import Tensor

from burnish import RewardTable, advantage


@advantage("reinforce_pp_tokens", per="token", paper="2501.03262")
def reinforce_pp_tokens(rewards: RewardTable, prompt_index: Tensor, mask: Tensor, turn_index: Tensor | None) -> Tensor:
    """Returns-to-go of each token, (N, T), of mean 0 and standard deviation 1 over the round."""
    total = rewards.total()[:, None]  # (N, 1)
    of_tokens = torch.zeros_like(mask * total) if rewards.token_rewards is None else rewards.token_rewards  # (N, T)
    returns = of_tokens.flip(1).cumsum(1).flip(1) + total - of_tokens.sum(1, keepdim=True)  # (N, T)
    known = mask & total.isfinite()
    kept = returns[known]  # (K,)
    if len(kept) == 0 or kept.max() == kept.min():
        return torch.zeros_like(returns)
    return torch.where(known, (returns - kept.mean()) / (kept.std() + 1e-8), 0.0)
