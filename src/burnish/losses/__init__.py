"""Losses: pure functions of tensors, each a row of a table."""

from burnish.losses.preference import preference_loss, preference_losses

__all__ = ["preference_loss", "preference_losses"]
