"""Softmax attention with its log-sum-exp, and its gradients from there: what attentions are put together from.

    O = P V,   P = exp(scale Q K' - l),   l = log sum exp(scale Q K')

On a CPU it is torch's flash attention, whose two operators give and take l; where that cannot run it is computed in
the open, with a matrix of scores. `torch.backends.cuda.enable_flash_sdp(False)`, torch's own switch for all devices,
takes the open one everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_forward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, eq=False)
class Sight:
    """Which keys a query sees; as it comes, all of them.

    Attributes:
        later: whether it sees those after it; else there are as many keys as queries.
        hidden: True where it does not see a key, broadcast to (B, 1, M, N).
    """

    later: bool = True
    hidden: Bool[Tensor, "B 1 M N"] | None = None

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """What is added to scores."""
        if self.hidden is None:
            return None
        return torch.zeros(self.hidden.shape, dtype=dtype, device=self.hidden.device).masked_fill_(
            self.hidden, -math.inf
        )


def attend(
    query: Float[Tensor, "B Hq M D"],
    key: Float[Tensor, "B Hk N D"],
    value: Float[Tensor, "B Hk N Dv"],
    sight: Sight,
    scale: float,
) -> tuple[Float[Tensor, "B Hq M Dv"], Float[Tensor, "B Hq M 1"]]:
    """Output and log-sum-exp; 0 and -inf for a query that sees nothing.

    Args:
        query: of Hq heads, a multiple of Hk: query head h reads the keys of head h Hk / Hq, rounded down.
        key: as many as values.
        value: of the query's dtype.
        sight: which keys a query sees.
        scale: of the scores.

    Returns:
        The output in the query's dtype; the log-sum-exp in float32 at least.
    """
    if not runs_flash(query.device.type):
        return _attend_openly(query, key, value, sight, scale)
    bias, states = sight.bias(query.dtype), _of_one_width(query, key, value)
    output, lse = flash(*states, later=sight.later, bias=bias, scale=scale)
    if sight.hidden is not None:
        lse = lse.masked_fill(sight.hidden.all(-1), -math.inf)  # it says 0
    return output[..., : value.shape[-1]], lse[..., None]


def attend_backward(
    grad: Float[Tensor, "B Hq M Dv"],
    query: Float[Tensor, "B Hq M D"],
    key: Float[Tensor, "B Hk N D"],
    value: Float[Tensor, "B Hk N Dv"],
    output: Float[Tensor, "B Hq M Dv"],
    lse: Float[Tensor, "B Hq M 1"],
    sight: Sight,
    scale: float,
) -> tuple[Float[Tensor, "B Hq M D"], Float[Tensor, "B Hk N D"], Float[Tensor, "B Hk N Dv"]]:
    """Gradients of query, key and value, for the whole `output` and `lse` of which these keys are all or a part.

    Args:
        grad: of the output; all are of one dtype.
        query: as in `attend`.
        key: all that the queries see, or a part of them.
        value: of these keys.
        output: over all keys that the queries see.
        lse: of the scores with all keys that the queries see.
        sight: which of these keys a query sees.
        scale: of the scores.
    """
    if not runs_flash(query.device.type):
        return _attend_openly_backward(grad, query, key, value, output, lse, sight, scale)
    bias, states = sight.bias(query.dtype), _of_one_width(grad, query, key, value, output)
    grads = _backward(*states, lse[..., 0].contiguous(), 0.0, not sight.later, attn_mask=bias, scale=scale)
    of_query, of_key, of_value = (
        found[..., : own.shape[-1]] for found, own in zip(grads, (query, key, value), strict=True)
    )
    return of_query, of_key, of_value


def flash(
    query: Float[Tensor, "B Hq M D"],
    key: Float[Tensor, "B Hk N D"],
    value: Float[Tensor, "B Hk N D"],
    *,
    later: bool = True,
    bias: Float[Tensor, "B 1 M N"] | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "B Hq M D"], Float[Tensor, "B Hq M"]]:
    """Torch's own: output and log-sum-exp, which are 0 for a query that sees nothing. Only where `runs_flash` says so.

    Args:
        query: as in `attend`.
        key: as in `attend`.
        value: as wide as the keys.
        later: as in `Sight`.
        bias: what is added to scores, in the query's dtype.
        scale: of the scores; None: D^-1/2.
    """
    return _forward(query, key, value, 0.0, not later, attn_mask=bias, scale=scale)


def runs_flash(device_type: str) -> bool:
    """Whether torch's flash attention is taken on a device, so that no scores are kept."""
    return device_type == "cpu" and torch.backends.cuda.flash_sdp_enabled() and has_flash()


def _of_one_width(*states: Tensor) -> list[Tensor]:
    """With zeros behind narrower heads: they change no score, and give zeros that are cut off again."""
    width = max(tensor.shape[-1] for tensor in states)
    return [t if t.shape[-1] == width else torch.nn.functional.pad(t, (0, width - t.shape[-1])) for t in states]


@cache
def has_flash() -> bool:
    """This torch has the two operators, and they know grouped heads and a mask."""
    query = torch.linspace(-1, 1, 16, dtype=torch.float32, device="cpu").view(1, 2, 2, 4)
    key = query.cos()[:, :1]  # what takes it for two heads reads the other one, and nothing beyond
    sight = Sight(hidden=torch.tensor([False, True], device="cpu").view(1, 1, 1, 2))
    bias, exact = sight.bias(query.dtype), _attend_openly(query, key, key, sight, 1.0)
    try:
        output, lse = flash(query, key, key, bias=bias, scale=1.0)
        if not _are_close((output, lse[..., None]), exact):
            return False
        grads = _backward(query, query, key, key, output, lse, 0.0, False, attn_mask=bias, scale=1.0)
    except (RuntimeError, AttributeError, TypeError):
        return False
    return _are_close(grads, _attend_openly_backward(query, query, key, key, *exact, sight, 1.0))


def _are_close(found: Sequence[Tensor], exact: Sequence[Tensor]) -> bool:
    pairs = zip(found, exact, strict=True)
    return all(one.shape == other.shape and torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def _attend_openly(query: Tensor, key: Tensor, value: Tensor, sight: Sight, scale: float) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = _scores(query.to(dtype), key.to(dtype), sight, scale)
    lse = scores.logsumexp(-1, keepdim=True)
    output = torch.einsum("bhrmn,bhnd->bhrmd", _weights(scores, lse), value.to(dtype))
    return output.flatten(1, 2).to(query.dtype), lse.flatten(1, 2)


def _attend_openly_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor, sight: Sight, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grouped = (key.shape[1], -1)
    delta = (grad * output).sum(-1, keepdim=True).unflatten(1, grouped)
    weights = _weights(_scores(query, key, sight, scale), lse.unflatten(1, grouped))
    grad, query = grad.unflatten(1, grouped), query.unflatten(1, grouped)
    of_scores = (torch.einsum("bhrmd,bhnd->bhrmn", grad, value) - delta) * weights * scale
    return (
        torch.einsum("bhrmn,bhnd->bhrmd", of_scores, key).flatten(1, 2),
        torch.einsum("bhrmn,bhrmd->bhnd", of_scores, query),
        torch.einsum("bhrmn,bhrmd->bhnd", weights, grad),
    )


def _scores(query: Tensor, key: Tensor, sight: Sight, scale: float) -> Float[Tensor, "B Hk R M N"]:
    """Scaled, -inf where a key is not seen."""
    scores = torch.einsum("bhrmd,bhnd->bhrmn", query.unflatten(1, (key.shape[1], -1)) * scale, key)
    if sight.hidden is not None:
        scores = scores.masked_fill(sight.hidden[:, :, None], -math.inf)
    if not sight.later:
        ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(ones.triu(1), -math.inf)
    return scores


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """Exp(score - lse); 0 where a query sees nothing."""
    return (scores - lse.clamp(min=torch.finfo(lse.dtype).min)).exp()
