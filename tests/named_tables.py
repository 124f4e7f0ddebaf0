"""The tables whose rows have names: what users may add to."""

from __future__ import annotations

from burnish.advantages import advantages
from burnish.importance import importance_corrections
from burnish.losses import kl_estimators, policy_losses, preference_losses, reward_losses
from burnish.rewards.catalog import reward_functions

TABLES = (
    advantages, importance_corrections, kl_estimators, policy_losses, preference_losses, reward_losses, reward_functions
)  # fmt: skip
