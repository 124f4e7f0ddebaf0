"""`torch.compile` of a trunk, layer by layer: what lies between the matrix products becomes a few fused kernels.

A whole model has places at which a compiler stops (parcels, layouts, tiles of the head), so only its layers are
compiled, and one graph serves all layers of a class, for any length. Their attention over a tree is left as it is, a
kernel of its own. A layer that gets a cache runs as ever: what a graph may assume of a cache is different in each layer
and at each token.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from burnish.models.introspect import UnsupportedModelError, layer_kinds, trunk_of
from burnish.models.recomputed import checkpoint_of, without_checkpointing

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
# Graphs of one layer's code: with and without gradient, dropout, an adapter, a tree, in each kind of layer.
RECOMPILE_LIMIT = 64


def compile_layers(model: PreTrainedModel, *, backend: str | None = None, mode: str | None = None) -> int:
    """Have the layers of a causal model compiled when they first run without a cache. Weights and names stay.

    Args:
        model: not wrapped; it may have adapters.
        backend: of `torch.compile`; None for inductor, which needs a C++ compiler on a CPU.
        mode: of `torch.compile`.

    Returns:
        How many layers.

    Raises:
        UnsupportedModelError: it has layers that a compiler unrolls token by token, or none that is known.
    """
    trunk = trunk_of(model)
    layers = [module for module in trunk.modules() if _is_layer(module)]
    if others := layer_kinds(trunk) - KINDS:
        raise UnsupportedModelError(
            f"torch_compile: {type(model).__name__} has layers of {', '.join(sorted(others))}, and only attention is "
            "compiled for any length: set torch_compile=False"
        )
    if not layers:
        raise UnsupportedModelError(
            f"torch_compile: no layer of {type(model).__name__} is a GradientCheckpointingLayer of transformers that "
            "takes past_key_values: set torch_compile=False"
        )
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)
    forwards = {
        cls: _forward_of(cls, backend="inductor" if backend is None else backend, mode=mode)
        for cls in {type(layer) for layer in layers}
    }
    for layer in layers:
        layer.forward = MethodType(forwards[type(layer)], layer)  # a method, so that a deep copy calls its own weights
    return len(layers)


def compiled_line(num_layers: int, *, backend: str | None, layout: str) -> str:
    """For the console and the report."""
    line = f"torch.compile ({backend or 'inductor'}): {num_layers} layers, when they first run."
    if layout == "cache":
        line += (
            " Layers that run on a cache are not compiled, and layout cache runs all that share a prompt on one: what "
            "is compiled are batches in which nothing is shared, or all with prefix_sharing='off'."
        )
    return line


def _is_layer(module: nn.Module) -> bool:
    takes = inspect.signature(type(module).forward).parameters
    return isinstance(module, GradientCheckpointingLayer) and "past_key_values" in takes


def _forward_of(cls: type[nn.Module], *, backend: str, mode: str | None) -> Any:
    """The forward of a class of layers: its own with a cache, else compiled once for all of them.

    Gradient checkpointing is a part of the graph, except over a tree, whose attention lies between two graphs: there
    it is around them.
    """
    own = cls.forward
    compile_it = partial(torch.compile, dynamic=True, backend=backend, mode=mode)
    compiled, compiled_inside = compile_it(own), compile_it(without_checkpointing(own))

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(item, Cache) for item in (*args, *kwargs.values())):
            return own(self, *args, **kwargs)
        checkpoint = None if kwargs.get("token_tree") is None else checkpoint_of(self)
        if checkpoint is None:
            return compiled(self, *args, **kwargs)
        return checkpoint(partial(compiled_inside, self, **kwargs), *args)

    return forward
