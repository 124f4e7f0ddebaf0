"""The divergence between two models over one vocabulary, token by token, without a (rows, V) tensor.

For each tile of rows both models' logits are computed, reduced to one number a row, and overwritten; the backward pass
computes them again. With p the model, q the teacher, z the model's logits, b the teacher's `interpolation`:

    b = 0       KL(q || p) = sum over v of q_v (log q_v - log p_v)        dKL/dz_v = p_v - q_v
    0 < b < 1   b KL(q || m) + (1 - b) KL(p || m),   m = b q + (1 - b) p
                                                      d/dz_v = (1 - b) p_v (log(p_v / m_v) - KL(p || m))
    b = 1       KL(p || q)                            d/dz_v = p_v (log(p_v / q_v) - KL(p || q))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from burnish.models.head import Tiles, plus_product
from burnish.models.introspect import HeadSpec

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Teacher:
    """What another model, over the same vocabulary, says of a parcel's completions: hidden states and head.

    Attributes:
        hidden: (N, T+1, H') the state before each completion token, and after the last.
        weight: (V, H') of its head.
        bias: (V,) or None.
        spec: scale and softcap of its logits.
        interpolation: which divergence from it is meant, 0 to 1. 0: KL(teacher || model), which covers all that the
            teacher may say; 1: KL(model || teacher), which says nothing that the teacher would not; between them the
            generalised Jensen-Shannon divergence.

    Raises:
        ValueError: `interpolation` is out of its range.
    """

    hidden: Float[Tensor, "N T1 H"]
    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, "V"] | None
    spec: HeadSpec
    interpolation: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.interpolation <= 1:
            raise ValueError(
                f"interpolation={self.interpolation!r}; allowed: 0, KL(teacher || model), to 1, KL(model || teacher)"
            )


def divergence_from(
    teacher: Teacher,
    mask: Bool[Tensor, "N T"],
    hidden: Float[Tensor, "R H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, "V"] | None,
    *,
    spec: HeadSpec,
) -> Float[Tensor, "R"]:
    """The teacher's divergence, in nats, of the next-token distributions at the places of `mask`, at least float32.

    Args:
        teacher: of the same parcel; nothing flows into it.
        mask: the R places, in the order of `hidden`.
        hidden: the model's states there.
        weight: the model's head.
        bias: its bias, or None.
        spec: scale and softcap of the model's logits.

    Raises:
        ValueError: two vocabularies, or a teacher of another parcel.

    Source: sequential KL of TDPO (2404.11999) eq. 10, one token of it; between 0 and 1: GKD (2306.13649) eq. 1.
    """
    if len(teacher.weight) != len(weight):
        raise ValueError(
            f"the divergence compares two models over one vocabulary; the policy has {len(weight)} tokens, "
            f"the reference {len(teacher.weight)}: give a ref_model of the same family"
        )
    if teacher.hidden.shape[:2] != (len(mask), mask.shape[1] + 1):
        raise ValueError(
            f"the teacher's hidden states are of another batch: {tuple(teacher.hidden.shape[:2])} rows and states, "
            f"expected {(len(mask), mask.shape[1] + 1)}: pass teacher_of(other_model, batch) of the same batch"
        )
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        other = (teacher.hidden[:, :-1][mask], teacher.weight, teacher.bias, teacher.spec)
        return _Divergence.apply(hidden, weight, bias, spec, other, (dtype, teacher.interpolation))


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec, other: Any, how: Any
    ) -> Tensor:
        dtype, interpolation = how
        model, teacher = _both(hidden, weight, bias, spec, other, dtype)
        divergence = torch.zeros(len(hidden), dtype=model.stat_dtype, device=hidden.device)
        for rows in model:
            log_p, log_q = model.logits(rows), teacher.logits(rows)  # (n, V)
            log_p.sub_(log_p.logsumexp(1, keepdim=True))
            log_q.sub_(log_q.logsumexp(1, keepdim=True))
            divergence[rows] = _values(log_p, log_q, interpolation).clamp_(min=0)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.spec, ctx.other, ctx.dtype, ctx.interpolation = spec, other, dtype, interpolation
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        model, teacher = _both(hidden, weight, bias, ctx.spec, ctx.other, ctx.dtype)
        grads = [
            torch.zeros_like(operand, dtype=model.stat_dtype) if wanted else None
            for operand, wanted in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        grad_hidden, grad_weight, grad_bias = grads
        for rows in model:
            grad = _grad_logits(model, teacher, rows, grad_output[rows], ctx.interpolation)  # (n, V)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            product = grad.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (product @ model.weight).to(grad_hidden.dtype)
            if grad_weight is not None:
                plus_product(grad_weight, product.t(), model.hidden[rows], model.stat_dtype)
        cast = (None if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden, weight, bias), strict=True))
        return *cast, None, None, None


def _both(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec, other: Any, dtype: torch.dtype
) -> tuple[Tiles, Tiles]:
    """The logits of both models, in tiles of the same rows; the model has a buffer to spare for its softcap."""
    model = Tiles(hidden, weight, bias, spec, dtype, num_buffers=1 + (spec.softcap is not None))
    states, head, head_bias, head_spec = other
    return model, Tiles(states, head, head_bias, head_spec, dtype, num_buffers=1)


def _values(log_p: Float[Tensor, "n V"], log_q: Float[Tensor, "n V"], interpolation: float) -> Float[Tensor, "n"]:
    """The divergence of each row; both operands may be overwritten."""
    if interpolation == 0:
        difference = torch.sub(log_q, log_p, out=log_p)
        return torch.linalg.vecdot(log_q.exp_(), difference)
    log_m = _log_mixture(log_p, log_q, interpolation)
    of_model = torch.linalg.vecdot(log_p.exp(), log_p - log_m)
    if interpolation == 1:
        return of_model
    of_teacher = torch.linalg.vecdot(log_q.exp(), log_q - log_m)
    return interpolation * of_teacher + (1 - interpolation) * of_model


def _log_mixture(log_p: Float[Tensor, "n V"], log_q: Float[Tensor, "n V"], interpolation: float) -> Tensor:
    if interpolation == 1:
        return log_q
    return torch.logaddexp(log_q + math.log(interpolation), log_p + math.log1p(-interpolation))


def _grad_logits(
    model: Tiles, teacher: Tiles, rows: slice, grad_output: Tensor, interpolation: float
) -> Float[Tensor, "n V"]:
    """(n, V) gradient with respect to the product of the model's head and hidden state."""
    logits = model.logits(rows)
    softcap, scale = model.spec.softcap, model.spec.scale
    chain = None
    if softcap is not None:  # d logits / d scaled = 1 - (logits / softcap)²
        chain = torch.div(logits, softcap, out=model.buffers[1][: len(logits)]).square_().neg_().add_(1)
    log_p = logits.sub_(logits.logsumexp(1, keepdim=True))
    other = teacher.logits(rows)
    log_q = other.sub_(other.logsumexp(1, keepdim=True))
    if interpolation == 0:
        grad = log_p.exp_().sub_(log_q.exp_())
    else:
        difference = log_p - _log_mixture(log_p, log_q, interpolation)
        p = log_p.exp_()
        difference.sub_(torch.linalg.vecdot(p, difference)[:, None])
        grad = p.mul_(difference).mul_(1.0 if interpolation == 1 else 1 - interpolation)
    grad.mul_(grad_output[:, None])
    if chain is not None:
        grad.mul_(chain)
    return grad.mul_(scale) if scale != 1.0 else grad
