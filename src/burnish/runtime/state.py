"""Stateful: what changes from step to step besides weights and optimizer, and therefore belongs in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from burnish.types import Mean


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


class RunningMeans:
    """Means of metrics over past steps, frozen within a step: what hyper-parameters that follow a metric are made of.

    A step's metrics are collected on each rank; `update` takes their sums over all ranks, and moves each mean once.

    Args:
        follows: (metric, momentum): momentum weights the past in an exponential moving average; None: the mean over
            all past steps, each weighted by its number of values. Every mean starts at 0.
    """

    def __init__(self, follows: Iterable[tuple[str, float | None]]) -> None:
        self._values: dict[tuple[str, float | None], Tensor] = {
            key: torch.zeros((), dtype=torch.float64) for key in follows
        }
        self._weights = dict.fromkeys(self._values, 0.0)
        self._collected: dict[str, Tensor] = {metric: torch.zeros(2, dtype=torch.float64) for metric, _ in self._values}

    def value(self, metric: str, momentum: float | None) -> Tensor:
        """() the mean as it was at the end of the last step."""
        return self._values[metric, momentum]

    def collect(self, metrics: Mapping[str, Mean]) -> None:
        """Add a micro-batch's metrics to those of the running step; no host sync."""
        for name in self._collected:
            mean = metrics[name]
            self._collected[name] = self._collected[name].to(mean.total.device) + torch.stack([mean.total, mean.weight])

    def collected(self) -> dict[str, Tensor]:
        """This rank's sums of the step so far: (2,) total and weight for each metric."""
        return dict(self._collected)

    def load_collected(self, collected: Mapping[str, Tensor]) -> None:
        """Continue from what `collected` returned."""
        self._collected = dict(collected)

    def update(self, sums: Mapping[str, Tensor]) -> None:
        """Move each mean by a step's sums over all ranks; a step that is empty or not finite changes nothing."""
        for (metric, momentum), old in self._values.items():
            total, weight = sums[metric].double().cpu().tolist()
            if not weight or not math.isfinite(total):
                continue
            seen = self._weights[metric, momentum]
            share = weight / (seen + weight) if momentum is None else 1 - momentum
            self._values[metric, momentum] = old + share * (total / weight - old)
            self._weights[metric, momentum] = seen + weight
        self._collected = {name: torch.zeros_like(value) for name, value in self._collected.items()}

    def state_dict(self) -> dict[str, Any]:
        """Every mean with the weight behind it."""
        return {
            f"{metric} {momentum}": [float(value), self._weights[metric, momentum]]
            for (metric, momentum), value in self._values.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for metric, momentum in self._values:
            value, weight = state[f"{metric} {momentum}"]
            self._values[metric, momentum] = torch.tensor(value, dtype=torch.float64)
            self._weights[metric, momentum] = weight
