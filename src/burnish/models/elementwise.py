"""The elementwise parts of a decoder layer, which keep little for the backward pass and touch memory seldom.

    RMSNorm         y = x r s,  r = (mean x² + eps)^-1/2    kept: x, and r, one number a row
                    ds = sum r g x,   dx = r (g s) - x r³ mean(x g s)
    gated product   p = act(gate) up                        kept: gate, up
                    dup = g act(gate),   dgate = g up act'(gate)
    rotation        y = x c + (-x'', x') s of halves x', x''    kept: c, s
                    dx = g c + (g'' s'', -g' s')

What comes out of them is offered as a recipe (`models.recipes`). Forward values are bit for bit those of the modules
of transformers. Blocks of a product stay in a core's cache from one operation to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from burnish.models.recipes import offer

BLOCK_NUMBERS = 1 << 16  # of one tensor and one thread: five of them, in float32, fit the cache of a core
_ops: Any = torch.ops.aten


@dataclass(frozen=True)
class NormKind:
    """What a family's RMSNorm does with its weight.

    Attributes:
        scale: of the weight, what the normed states are multiplied with.
        casts_first: the normed states are cast to the dtype of the input before that, and not after.
    """

    scale: Callable[[Tensor], Tensor]
    casts_first: bool


NORMS: Mapping[str, NormKind] = {
    "llama": NormKind(lambda weight: weight, casts_first=True),
    "olmo": NormKind(lambda weight: weight, casts_first=False),
    "gemma": NormKind(lambda weight: 1.0 + weight.float(), casts_first=False),
}


@dataclass(frozen=True)
class Activation:
    """An elementwise function, and its gradient, into given tensors: (x, out), (grad, x, out)."""

    into: Callable[[Tensor, Tensor], Tensor]
    gradient_into: Callable[[Tensor, Tensor, Tensor], Tensor]


def _gelu(approximate: str) -> Activation:
    return Activation(
        lambda x, out: _ops.gelu.out(x, approximate=approximate, out=out),
        lambda grad, x, out: _ops.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=out),
    )


ACTIVATIONS: Mapping[str, Activation] = {
    "silu": Activation(
        lambda x, out: _ops.silu.out(x, out=out),
        lambda grad, x, out: _ops.silu_backward.grad_input(grad, x, grad_input=out),
    ),
    "gelu_tanh": _gelu("tanh"),
    "gelu": _gelu("none"),
}


def rms_norm(states: Tensor, weight: Tensor, *, eps: float, kind: NormKind, narrow: bool = False) -> Tensor:
    """x / sqrt(mean x² + eps) scale(weight) over the last dimension, as a family's module computes it.

    Args:
        states: x.
        weight: of the module.
        eps: of the module.
        kind: what its family does.
        narrow: only products read the result: under autocast it is in their dtype.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if narrow and torch.is_autocast_enabled(device) else None
    if not torch.is_grad_enabled():
        return _norm(states, weight, eps, kind, dtype)[0]
    normed, root = _RMSNorm.apply(states, weight, eps, kind, dtype)
    offer(normed, partial(_scaled, states.detach(), root, weight.detach(), kind, dtype))
    return normed


def gated_product(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up, both of one shape and dtype."""
    if not torch.is_grad_enabled():
        return _product(gate, up, activation)
    activated: list[Tensor] = []  # what the recipe leaves for the gradients, which come right after it
    product = _GatedProduct.apply(gate, up, activation, activated)
    offer(product, partial(_product, gate.detach(), up.detach(), activation, activated))
    return product


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys (..., D) turned by the angles of their positions, halves of D being the two coordinates."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    if not torch.is_grad_enabled():
        return _rotated(query, cos, sin), _rotated(key, cos, sin)
    return _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Turned by the angles, or its transpose, which is the gradient's way."""
    (first, second), (first_sin, second_sin) = states.chunk(2, -1), sin.chunk(2, -1)
    rotated = states * cos
    one, other = rotated.chunk(2, -1)
    if back:
        first_sin, second_sin = second_sin, first_sin
    one.addcmul_(second, first_sin, value=1 if back else -1)
    other.addcmul_(first, second_sin, value=-1 if back else 1)
    return rotated


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = states.dtype
        return _rotated(states, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, back=True).to(ctx.dtype), None, None


def _norm(
    states: Tensor, weight: Tensor, eps: float, kind: NormKind, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """The normed states, in this dtype if there is one, and r (..., 1)."""
    squares = states.to(torch.float32).pow(2)
    root = squares.mean(-1, keepdim=True).add_(eps).rsqrt_()
    return _scaled(states, root, weight, kind, dtype, out=squares), root


def _scaled(
    states: Tensor,
    root: Tensor,
    weight: Tensor,
    kind: NormKind,
    dtype: torch.dtype | None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    scale = kind.scale(weight)
    normed = torch.mul(states.to(torch.float32), root, out=out)
    if kind.casts_first:
        normed = normed.to(states.dtype)
    same = torch.promote_types(normed.dtype, scale.dtype) == normed.dtype
    scaled = normed.mul_(scale) if same else normed * scale
    own = scaled if kind.casts_first else scaled.to(states.dtype)
    return own if dtype is None else own.to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, eps: float, kind: NormKind, dtype: torch.dtype | None
    ) -> tuple[Tensor, Tensor]:
        normed, root = _norm(states, weight, eps, kind, dtype)
        ctx.save_for_backward(states, weight, root)
        ctx.kind = kind
        ctx.mark_non_differentiable(root)
        return normed, root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, root = ctx.saved_tensors
        dtype = torch.promote_types(states.dtype, torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            rows, own = (tensor.to(dtype).reshape(-1, states.shape[-1]) for tensor in (states, grad))  # (R, H)
            scale, root = ctx.kind.scale(weight).to(dtype), root.to(dtype).view(-1, 1)
            both = own * rows
            grad_weight = (root.view(1, -1) @ both).view_as(weight) if ctx.needs_input_grad[1] else None
            along = (both @ scale)[:, None].mul_(root.pow(3)).div_(-rows.shape[1])  # (R, 1)
            grad_states = torch.mul(own, scale, out=both).mul_(root).addcmul_(rows, along)
            of_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
            return grad_states.view_as(states).to(states.dtype), of_weight, None, None, None


def _product(gate: Tensor, up: Tensor, activation: Activation, activated: list[Tensor] | None = None) -> Tensor:
    """The product; what the activation gives alone is appended to `activated`, if there is one."""
    product = torch.empty_like(gate)
    if activated is None:
        for own, other, out in _blocks(gate, up, product):
            activation.into(own, out).mul_(other)
        return product
    alone = torch.empty_like(gate)
    for own, other, out, first in _blocks(gate, up, product, alone):
        torch.mul(activation.into(own, first), other, out=out)
    activated.append(alone)
    return product


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation, activated: list[Tensor]) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.activated = activation, activated
        return _product(gate, up, activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad = grad.to(gate.dtype).contiguous()
        known = bool(ctx.activated)
        grad_up = ctx.activated.pop() if known else torch.empty_like(gate)
        grad_gate = torch.empty_like(gate)
        for own, other, outer, of_gate, of_up in _blocks(gate, up, grad, grad_gate, grad_up):
            activated = of_up if known else ctx.activation.into(own, of_up)
            activated.mul_(outer)
            ctx.activation.gradient_into(torch.mul(outer, other, out=of_gate), own, of_gate)
        return grad_gate, grad_up, None, None


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same pieces of contiguous tensors of one size; on a CPU small ones, elsewhere the whole."""
    size = BLOCK_NUMBERS * torch.get_num_threads()
    if tensors[0].device.type != "cpu" or tensors[0].numel() <= size:
        return iter([tensors])
    return zip(*(tensor.view(-1).split(size) for tensor in tensors), strict=True)
