"""The queue of a round: optimizer steps that wait to be taken. This rank's part of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from burnish.types import RolloutBatch


class RoundQueue:
    """Optimizer steps, each a list of micro-batches, taken in order, `iterations` times over.

    Attributes:
        round_index: rounds that were begun, over the whole run.
    """

    def __init__(self) -> None:
        self.round_index = 0
        self._steps: list[list[RolloutBatch]] = []
        self._taken, self._total = 0, 0

    @property
    def is_empty(self) -> bool:
        """Every step of the round was taken."""
        return self._taken == self._total

    @property
    def is_first_pass(self) -> bool:
        """The next step is trained on for the first time."""
        return self._taken < len(self._steps)

    def fill(self, steps: Sequence[Sequence[RolloutBatch]], *, iterations: int) -> None:
        """Begin a round."""
        self._steps = [list(step) for step in steps]
        self._taken, self._total = 0, len(steps) * iterations
        self.round_index += 1

    def take(self) -> list[RolloutBatch]:
        """The micro-batches of the next optimizer step."""
        step = self._steps[self._taken % len(self._steps)]
        self._taken += 1
        return step

    def drop_rest(self) -> int:
        """Give up what is left of the round; returns how many steps that were."""
        num_left = self._total - self._taken
        self._taken = self._total
        return num_left

    def state_dict(self) -> dict[str, Any]:
        """The round, and how far it is; an empty queue holds no parcels."""
        steps = [] if self.is_empty else [[_tree(parcel) for parcel in step] for step in self._steps]
        return {"round_index": self.round_index, "steps": steps, "taken": self._taken, "total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.round_index = int(state["round_index"])
        self._steps = [[RolloutBatch(**parcel) for parcel in step] for step in state["steps"]]
        self._taken, self._total = int(state["taken"]), int(state["total"])
        if not self._steps:
            self._taken = self._total = 0


def _tree(parcel: RolloutBatch) -> dict[str, Any]:
    """A parcel's fields; tensors are cloned, since views of one round would be saved whole."""
    return {field.name: _cloned(getattr(parcel, field.name)) for field in fields(parcel)}


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {name: _cloned(item) for name, item in value.items()}
    return value
