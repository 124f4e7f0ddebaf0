"""Tensors that the backward pass makes again, where a layer would keep them: a recipe in the place of the numbers.

A layer's elementwise parts are cheap to compute and as wide as the products around them. Whoever makes such a tensor
`offer`s it with its recipe; while `recipes_kept` is open, autograd keeps the recipe wherever it would keep the tensor:
as the input of a linear layer, of adapters or of quantised weights. Values do not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

LATEST = 4  # offers that are remembered: a norm's output is used by its own layer, between at most two others


class Recipe:
    """How a tensor is made again; made once for all who kept it.

    Args:
        make: the same numbers each time.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._value: Tensor | None = None
        self.num_keepers = self._num_asked = 0

    def made(self) -> Tensor:
        """The tensor; forgotten again when the last keeper has asked."""
        value = self._make() if self._value is None else self._value
        self._num_asked += 1
        self._value = value if self._num_asked % self.num_keepers else None
        return value


@dataclass(frozen=True, eq=False)
class _Offer:
    tensor: Tensor  # held, so that no other tensor comes to lie in its place
    version: int
    recipe: Recipe

    def is_of(self, other: Tensor) -> bool:
        """The other tensor has the same numbers in the same order."""
        own = self.tensor
        return (
            other.data_ptr() == own.data_ptr()
            and other.numel() == own.numel()
            and other.dtype == own.dtype
            and other.is_contiguous()
            and own._version == self.version
        )


_offers: ContextVar[deque[_Offer] | None] = ContextVar("burnish_recipes", default=None)


@contextmanager
def recipes_kept() -> Iterator[None]:
    """What is offered while this is open is not kept for the backward pass, but made again in it."""
    token = _offers.set(deque(maxlen=LATEST))
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _offers.reset(token)


def offer(tensor: Tensor, make: Callable[[], Tensor]) -> None:
    """A tensor, and how it is made again in the same order of memory. Nothing happens unless recipes are kept.

    Args:
        tensor: kept after all if it is not contiguous, or written to afterwards.
        make: holds nothing of the graph.
    """
    offers = _offers.get()
    if offers is not None and tensor.is_contiguous():
        offers.append(_Offer(tensor.detach(), tensor._version, Recipe(make)))


def _pack(tensor: Tensor) -> Tensor | tuple[Recipe, torch.Size]:
    for item in _offers.get() or ():
        if item.is_of(tensor):
            item.recipe.num_keepers += 1
            return item.recipe, tensor.shape
    return tensor.detach()  # the tensor itself would keep its own graph alive


def _unpack(kept: Tensor | tuple[Recipe, torch.Size]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    recipe, shape = kept
    return recipe.made().view(shape)
