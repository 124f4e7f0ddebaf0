"""Losses: pure functions of tensors, each a row of a table. Importing this package fills the tables."""

from burnish.losses import coupled, graded, policy_only, ratios, weighted
from burnish.losses.divergence import divergences
from burnish.losses.kl import kl_estimator, kl_estimators
from burnish.losses.policy import policy_loss, policy_losses
from burnish.losses.preference import preference_loss, preference_losses
from burnish.losses.reduce import aggregations, reduce_tokens
from burnish.losses.reward import reward_loss, reward_losses
from burnish.losses.supervised import supervised_loss, supervised_losses
from burnish.losses.unpaired import unpaired_loss, unpaired_losses

__all__ = [
    "aggregations",
    "coupled",
    "divergences",
    "graded",
    "kl_estimator",
    "kl_estimators",
    "policy_loss",
    "policy_losses",
    "policy_only",
    "preference_loss",
    "preference_losses",
    "ratios",
    "reduce_tokens",
    "reward_loss",
    "reward_losses",
    "supervised_loss",
    "supervised_losses",
    "unpaired_loss",
    "unpaired_losses",
    "weighted",
]
