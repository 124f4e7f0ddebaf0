"""A forward pass that two rooms need is run once: rescoring reads its numbers, training its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.models.forward import forward
from burnish.types import RolloutBatch, TokenStats

if TYPE_CHECKING:
    from torch import nn


class KeptForward:
    """The policy's forward of the part that is trained on first after a round, with its graph.

    No weight moves between rescoring a round and its first optimizer step, so training would compute the very same
    again. One part is kept and no more: its activations are those that training holds anyway.

    Attributes:
        keeps: False: both run their own, for who looks at one, and for debugging.
    """

    def __init__(self) -> None:
        self.keeps = True
        self._kept: tuple[RolloutBatch, TokenStats] | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing is kept."""
        return self._kept is None

    def run(self, model: nn.Module, parcel: RolloutBatch, needs: frozenset[str]) -> TokenStats:
        """Run the forward as training does, and keep it."""
        was_training = model.training
        model.train()  # gradient checkpointing asks for it
        with torch.enable_grad():
            stats = forward(model, parcel, needs=needs, temperature=parcel.temperature)
        model.train(was_training)
        self._kept = parcel, stats
        return stats

    def take(self, parcel: RolloutBatch) -> TokenStats | None:
        """What was kept of these very tokens, once; None: there is nothing, or nobody wants its graph."""
        if self._kept is None or not torch.is_grad_enabled() or not _same_tokens(self._kept[0], parcel):
            return None
        (_, stats), self._kept = self._kept, None
        return stats

    def drop(self) -> None:
        """Forget it: weights have moved, or are about to."""
        self._kept = None


def _same_tokens(kept: RolloutBatch, given: RolloutBatch) -> bool:
    """Whether a forward of one is a forward of the other."""
    names = ("row_id", "prompt_ids", "prompt_mask", "prompt_index", "completion_ids", "completion_mask", "loss_mask")
    return (
        type(kept) is type(given)
        and kept.temperature == given.temperature
        and all(torch.equal(kept[name], given[name]) for name in names)
    )
