"""How much each of several sources is of an epoch: the weights as they are given, and as whole rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.registry import closest


def apportion(total: int, weights: Sequence[float]) -> tuple[int, ...]:
    """`total` in parts that relate as `weights`, each to the nearest whole number below or above; they add up.

    >>> apportion(10, [1, 1, 1])
    (4, 3, 3)
    """
    exact = [total * weight / sum(weights) for weight in weights]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda index: parts[index] - exact[index])
    for index in by_remainder[: total - sum(parts)]:
        parts[index] += 1
    return tuple(parts)


def read_weights(weights: Any, names: Sequence[str]) -> tuple[float, ...] | None:
    """`dataset_weights` in the order of the sources.

    Args:
        weights: a mapping of every name to its weight, a list of them, or None.
        names: the sources in order.

    Raises:
        ValueError: not one finite weight above 0 for each source.
    """
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        unknown = [str(name) for name in weights if name not in names]
        missing = [name for name in names if name not in weights]
        if unknown or missing:
            found = [f"{name!r} is no source{closest(name, names) or ''}" for name in unknown]
            found += [f"{name!r} has none" for name in missing]
            raise ValueError(f"dataset_weights: {'; '.join(found)}. Give each of {', '.join(names)} a weight.")
        weights = [weights[name] for name in names]
    if not isinstance(weights, list | tuple) or len(weights) != len(names):
        raise ValueError(
            f"dataset_weights={weights!r}; give a mapping of names to weights, or a list of one for each of "
            f"{', '.join(names)}"
        )
    for name, weight in zip(names, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"dataset_weights: {weight!r} for {name!r}; allowed: above 0. Remove what is not wanted.")
    return tuple(float(weight) for weight in weights)
