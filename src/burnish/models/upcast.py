"""A trunk in low precision that computes in float32 for a while, so that what differs is no rounding.

One layer is held in float32 at a time, while it runs; afterwards its weights are bit for bit what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from torch import Tensor, nn

LOW_PRECISION = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(trunk: nn.Module) -> Iterator[None]:
    """What the trunk computes while this is open is computed in float32; without gradient.

    Args:
        trunk: of a causal model; one in float32 or float64, or whose weights are more than numbers in memory
            (quantised, or elsewhere until a layer runs), stays as it is.
    """
    embeddings: Any = trunk.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    if embeddings.weight.dtype not in LOW_PRECISION or not all(map(_is_plain, trunk.parameters())):
        yield
        return
    with ExitStack() as hooks:
        hooks.callback(embeddings.register_forward_hook(_widened).remove)
        for module in _parts(trunk):
            if module is embeddings:
                continue
            part = _Part(module)
            hooks.callback(part.narrow)
            hooks.callback(module.register_forward_pre_hook(part.widen).remove)
            hooks.callback(module.register_forward_hook(part.narrow, always_call=True).remove)
        yield


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a trunk, and around them the modules with weights of their own."""
    if isinstance(module, GradientCheckpointingLayer) or next(module.parameters(recurse=False), None) is not None:
        yield module
        return
    for child in module.children():
        yield from _parts(child)


def _is_plain(weight: Tensor) -> bool:
    return type(weight.data) is torch.Tensor and weight.is_floating_point() and not weight.is_meta


def _widened(module: nn.Module, args: Any, states: Tensor) -> Tensor:
    del module, args
    return states.float()


class _Part:
    """A module whose weights in low precision are in float32 while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = [t for t in (*module.parameters(), *module.buffers()) if t.dtype in LOW_PRECISION]
        self.narrow_data: list[Tensor] = []

    def widen(self, *_: Any) -> None:
        """Put float32 copies in the place of the weights."""
        if not self.narrow_data:
            self.narrow_data = [tensor.data for tensor in self.tensors]
            for tensor in self.tensors:
                tensor.data = tensor.data.float()

    def narrow(self, *_: Any) -> None:
        """Put the weights back."""
        for tensor, data in zip(self.tensors, self.narrow_data, strict=False):
            tensor.data = data
        self.narrow_data = []
