"""Seconds inside functions of a library, step by step. Standard library only."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

REST = "update"


class Phases:
    """Seconds inside watched functions, and what is left of each step: forward, backward, optimizer, all else.

    Args:
        names: of the phases, in the order in which they are shown; what is left is the last one, `REST`.
    """

    def __init__(self, *names: str) -> None:
        self.calls: dict[str, list[float]] = {name: [] for name in names}

    def watch(self, owner: Any, function: str, phase: str | Callable[..., str | None]) -> None:
        """Count a function of a module, or a method of an object, for a phase.

        Args:
            owner: where it is looked up by whoever calls it.
            function: its name.
            phase: which one, or a function of its first argument that says so; None: none.
        """
        original = getattr(owner, function)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            name = phase(args[0]) if callable(phase) else phase
            if name is None:
                return original(*args, **kwargs)
            started = time.perf_counter()
            result = original(*args, **kwargs)
            self.calls[name].append(time.perf_counter() - started)
            return result

        setattr(owner, function, timed)

    def of_steps(self, seconds: list[float]) -> dict[str, list[float]]:
        """The phases of each step, whose sum is the step. Every step calls a phase equally often."""
        found = {name: _sums(calls, len(seconds)) for name, calls in self.calls.items()}
        inside = [sum(parts) for parts in zip(*found.values(), strict=True)]
        return {**found, REST: [whole - part for whole, part in zip(seconds, inside, strict=True)]}


def _sums(calls: list[float], num_steps: int) -> list[float]:
    size, left_over = divmod(len(calls), num_steps)
    if left_over:
        raise RuntimeError(f"{len(calls)} calls do not divide into {num_steps} steps")
    return [sum(calls[step * size : (step + 1) * size]) for step in range(num_steps)]
