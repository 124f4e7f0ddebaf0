"""Rewards: functions and models that score answers. `burnish.rewards.score` is the only place that calls user code.

Public names are imported when they are first used, so that the worker processes stay free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.rewards.log import ScoreLog
    from burnish.rewards.score import RewardError, Scorer
    from burnish.rewards.table import reward, reward_functions

_HOME = {
    "RewardError": "burnish.rewards.score",
    "ScoreLog": "burnish.rewards.log",
    "Scorer": "burnish.rewards.score",
    "reward": "burnish.rewards.table",
    "reward_functions": "burnish.rewards.table",
}

__all__ = ["RewardError", "ScoreLog", "Scorer", "reward", "reward_functions"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'burnish.rewards' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
