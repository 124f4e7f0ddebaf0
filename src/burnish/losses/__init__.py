"""Losses: pure functions of tensors, each a row of a table. Importing this package fills the tables."""

from burnish.losses import coupled, graded, policy_only, ratios
from burnish.losses.divergence import divergences
from burnish.losses.preference import preference_loss, preference_losses

__all__ = ["coupled", "divergences", "graded", "policy_only", "preference_loss", "preference_losses", "ratios"]
