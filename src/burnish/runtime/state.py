"""Stateful: what changes from step to step besides weights and optimizer, and therefore belongs in a checkpoint."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Stateful(Protocol):
    """A counter, controller or running statistic. Frozen within a step; in every checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """All that an exact continuation needs: numbers, strings, tensors, and nestings of them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        ...


class Counter:
    """A running total over the whole run that survives a resume; stays on the device until it is read."""

    def __init__(self) -> None:
        self._total: Tensor | int = 0

    def add(self, amount: Tensor | int) -> None:
        """Add to the total without a host sync."""
        self._total = self._total + amount

    @property
    def value(self) -> int:
        """The total, which costs a host sync."""
        return int(self._total)

    def state_dict(self) -> dict[str, Any]:
        """The total."""
        return {"total": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from a saved total."""
        self._total = int(state["total"])
