"""The table of rewards with every row of Burnish's own: importing this fills it."""

from __future__ import annotations

from burnish.rewards import builtin, maths, programs
from burnish.rewards.table import reward, reward_functions

__all__ = ["builtin", "maths", "programs", "reward", "reward_functions"]
