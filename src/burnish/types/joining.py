"""What parcels are put together with: tensors of other widths behind one another, and what has to be alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def stacked(tensors: Sequence[Tensor], *, left: bool = False) -> Tensor:
    """(n, w) tensors as one (sum of n, largest w): 0 behind each row, or before it."""
    width = max(tensor.shape[1] for tensor in tensors)
    missing = [width - tensor.shape[1] for tensor in tensors]
    return torch.cat([pad(t, (m, 0) if left else (0, m)) for t, m in zip(tensors, missing, strict=True)])


def chained(mappings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mappings of the same names, the tensors of a name behind one another."""
    return {name: torch.cat([mapping[name] for mapping in mappings]) for name in mappings[0]}


def starts(sizes: Sequence[int]) -> list[int]:
    """Where each of several things begins that lie behind one another."""
    return [sum(sizes[:number]) for number in range(len(sizes))]


def likeness(value: Any) -> Any:
    """What must be equal in two fields for them to be put together: tensors may differ, and names and numbers not."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return tuple(sorted(value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return len(value) > 0 if isinstance(value, tuple) else type(value).__name__  # pyright: ignore[reportUnknownArgumentType]
