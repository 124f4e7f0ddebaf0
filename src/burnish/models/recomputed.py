"""Layers that run a second time, in the backward pass, in place of keeping what they computed: gradient checkpointing.

The second run happens when whatever was open around the forward pass is closed, and perhaps another batch has passed.
What a layer was given comes along with it; what it reads elsewhere has to be put there again, for that layer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from torch import nn

OF_TRANSFORMERS, OF_TORCH = "_gradient_checkpointing_func", "checkpoint_fn"
_SWITCHES = ("gradient_checkpointing", OF_TRANSFORMERS, "training")
Checkpoint = Callable[..., Any]  # (function, *its arguments) -> its outputs, which run the function again


def recomputes(trunk: nn.Module) -> bool:
    """Activations of the trunk are computed again in the backward pass while it is trained."""
    return any(vars(module).get("gradient_checkpointing") or OF_TORCH in vars(module) for module in trunk.modules())


def checkpoint_of(layer: nn.Module) -> Checkpoint | None:
    """By what the forward of a layer of transformers runs its own computation; None if that runs once.

    Before transformers 5.23 it is not the forward that does so, but what calls it.
    """
    is_called_so = "__call__" in vars(GradientCheckpointingLayer)
    is_on = layer.training and vars(layer).get("gradient_checkpointing")
    return vars(layer)[OF_TRANSFORMERS] if is_on and not is_called_so else None


def without_checkpointing(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The computation of a class of layers, around which transformers puts checkpointing."""
    return vars(forward).get("__wrapped__", forward)


@contextmanager
def also_when_recomputed(trunk: nn.Module, surroundings: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """What runs of the trunk while this is open, and again in the backward pass, runs in these surroundings each time.

    Args:
        trunk: transformers' layers, or torch's wrappers of any, hold the function that runs them.
        surroundings: opened anew around each run.
    """
    own = [
        (module, name, vars(module)[name])
        for module in trunk.modules()
        for name in (OF_TRANSFORMERS, OF_TORCH)
        if name in vars(module)
    ]
    for module, name, function in own:
        vars(module)[name] = _within(surroundings, function)
    try:
        yield
    finally:
        for module, name, function in own:
            vars(module)[name] = function


def _within(surroundings: Callable[[], AbstractContextManager[None]], own: Checkpoint) -> Checkpoint:
    @wraps(own)
    def checkpointed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def run(*inputs: Any, **options: Any) -> Any:
            with surroundings():
                return function(*inputs, **options)

        return own(run, *args, **kwargs)

    return checkpointed


@contextmanager
def recomputing(trunk: nn.Module) -> Iterator[int]:
    """The layers of a trunk in evaluation mode are computed again in the backward pass; yields how many there are.

    The layers alone are in training mode for it, and nothing in them.
    """
    layers = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [{name: vars(layer)[name] for name in _SWITCHES if name in vars(layer)} for layer in layers]
    for layer in layers:
        vars(layer).update(zip(_SWITCHES, (True, partial(checkpoint, use_reentrant=False), True), strict=True))
    try:
        yield len(layers)
    finally:
        for layer, own in zip(layers, before, strict=True):
            for name in _SWITCHES:
                del vars(layer)[name]
            vars(layer).update(own)
