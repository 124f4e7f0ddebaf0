"""Rewards: functions and models that score answers. `burnish.rewards.score` is the only place that calls user code.

Public names are imported when they are first used, so that the worker processes stay free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.rewards.builtin import (
        get_repetition_penalty_reward,
        get_soft_overlong_punishment,
        think_format_reward,
    )
    from burnish.rewards.log import ScoreLog
    from burnish.rewards.maths import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward
    from burnish.rewards.models import ClassifierReward
    from burnish.rewards.score import RewardError, Scorer
    from burnish.rewards.table import reward, reward_functions
    from burnish.rewards.trial import try_rewards

_HOME = {
    "ClassifierReward": "burnish.rewards.models",
    "RewardError": "burnish.rewards.score",
    "ScoreLog": "burnish.rewards.log",
    "Scorer": "burnish.rewards.score",
    "accuracy_reward": "burnish.rewards.maths",
    "get_cosine_scaled_reward": "burnish.rewards.maths",
    "get_repetition_penalty_reward": "burnish.rewards.builtin",
    "get_soft_overlong_punishment": "burnish.rewards.builtin",
    "reasoning_accuracy_reward": "burnish.rewards.maths",
    "reward": "burnish.rewards.table",
    "reward_functions": "burnish.rewards.table",
    "think_format_reward": "burnish.rewards.builtin",
    "try_rewards": "burnish.rewards.trial",
}

__all__ = [
    "ClassifierReward",
    "RewardError",
    "ScoreLog",
    "Scorer",
    "accuracy_reward",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
    "reasoning_accuracy_reward",
    "reward",
    "reward_functions",
    "think_format_reward",
    "try_rewards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'burnish.rewards' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
