"""What both sides of the comparison of policy losses with TRL build for themselves: the same numbers, by formula.

Imports nothing of Burnish, TRL or pytest, so that it runs in either environment.
"""

from __future__ import annotations

import torch

N, T, G = 6, 5, 3
MAX_COMPLETION_LENGTH = 12
LENGTHS = (5, 3, 4, 1, 2, 5)
COMMON = {"beta": 0.0, "epsilon": 0.2}
KL = {"beta": 0.3, "use_bias_correction_kl": False}
SAMPLED = {"loss_type": "grpo", "vllm_importance_sampling_clip_min": 0.75}
OPTIONS = {  # of a case: what is set in TRL's GRPOConfig, or in GMPOConfig
    "grpo": {"loss_type": "grpo"},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.05},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.08},
    "delta": {"loss_type": "grpo", "delta": 1.3},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.1},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "gmpo": {"epsilon": 0.1, "epsilon_high": 0.15},
    "kl": {"loss_type": "dapo", **KL},
    "kl_corrected": {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": True},
    "kl_corrected_by_sequence": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.3, "use_bias_correction_kl": True
    },
    "kl_over_a_constant": {"loss_type": "dr_grpo", **KL},
    "top_entropy": {"loss_type": "grpo", "top_entropy_quantile": 0.4},
    "off_policy_mask": {"loss_type": "grpo", "off_policy_mask_threshold": 0.1},
    "entropy_bonus": {"loss_type": "grpo", "entropy_coef": 0.1},
    "token_truncate": {**SAMPLED, "vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.2},
    "token_mask": {**SAMPLED, "vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_max": 1.2},
    "sequence_truncate": {
        **SAMPLED, "vllm_importance_sampling_mode": "sequence_truncate", "vllm_importance_sampling_clip_max": 1.2
    },
    "sequence_mask": {**SAMPLED, "vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 1.2},
    "vespo_with_weights": {
        "loss_type": "vespo", "vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.2
    },
}  # fmt: skip
ADVANTAGES = {  # of a case: what is set
    "group": {"scale_rewards": "group"},
    "batch": {"scale_rewards": "batch"},
    "none": {"scale_rewards": "none"},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum"},
}
REWARD_WEIGHTS = [1.0, 0.5]
REWARDS = [  # by two functions; None is not scored
    [1.0, 0.2], [0.0, None], [0.0, 0.9],
    [1.0, 10.0], [None, None], [1.0, 30.0],
]  # fmt: skip


def waves(phase: float) -> torch.Tensor:
    """(N, T) of sines."""
    return torch.sin(12.9898 * torch.arange(N * T, dtype=torch.float64) + phase).view(N, T)


def make_tensors() -> dict[str, torch.Tensor]:
    """Log-probs of policy, old policy, reference and engine, entropies, advantages; one token in the middle untrained."""
    logps = -1.5 + waves(0.0)
    mask = torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]
    mask[2, 1] = False
    return {
        "logps": logps,
        "old": logps + 0.4 * waves(1.0),
        "ref": logps + 0.5 * waves(2.0),
        "sampler": logps + 0.4 * waves(1.0) + 0.3 * waves(3.0),
        "entropy": 1.2 + waves(4.0),
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.1, 0.9, -0.3], dtype=torch.float64),
        "mask": mask,
    }
