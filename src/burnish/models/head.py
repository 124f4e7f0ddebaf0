"""The tiled head: statistics of chosen tokens from hidden states, without a (rows, V) tensor.

For each tile of rows the logits are computed, reduced to a few numbers a row, and overwritten; the backward pass
computes them again. The memory is one or two (tile, V) buffers however many rows there are. Logits that fit a budget
all together are kept for the backward pass instead, which turns them into their gradient in place: three matrix
products, or two with a frozen head, instead of one more.
With z the logits, p = softmax(z), y the token, lse = log sum exp z, E = entropy:

    logp = z_y - lse                              dlogp/dz_j = [j = y] - p_j
    entropy = lse - sum_j p_j z_j                 dE/dz_j    = -p_j (log p_j + E)

`top1`, `mean_logit` and `sum_p2` carry no gradient. Statistics are at least float32, products in the dtype that
autocast asks for. `TILED = False` takes another way to the same numbers, to debug with: all logits at once, of every
token of the answers, and their gradients by autograd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from burnish.models.introspect import HeadSpec, logits_of
from burnish.models.rounded import round_up

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TILED = True
STATISTICS = ("entropy", "top1", "mean_logit", "sum_p2")
TILE_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
KEPT_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
MIN_TILE_ROWS, MAX_TILE_ROWS = 64, 1024


def score_tokens(
    hidden: Float[Tensor, "R H"],
    weight: Float[Tensor, "V H"],
    bias: Float[Tensor, "V"] | None,
    targets: Int[Tensor, "R"],
    *,
    spec: HeadSpec,
    needs: frozenset[str] = frozenset(),
) -> dict[str, Float[Tensor, "R"]]:
    """Log-probs of `targets` under softmax(logits(hidden)), and whatever else is needed.

    Args:
        hidden: the state before each target.
        weight: the head's matrix.
        bias: the head's bias, or None.
        targets: token ids.
        spec: scale and softcap of the logits.
        needs: any of `STATISTICS`.

    Returns:
        `logps` and each name in `needs`, (R,) each, in float32 or better. Gradients flow through `logps` and
        `entropy` to hidden, weight and bias.

    Raises:
        ValueError: an unknown statistic.
    """
    if unknown := needs - set(STATISTICS):
        raise ValueError(f"unknown token statistics {sorted(unknown)}; known: {', '.join(STATISTICS)}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    extra = tuple(name for name in STATISTICS if name in needs and name != "entropy")
    if not TILED:
        return _score_openly(hidden, weight, bias, targets, spec=spec, dtype=dtype, needs=needs)
    count = len(hidden)  # from here on more rows, of which nobody reads anything
    hidden, targets = pad(hidden, (0, 0, 0, round_up(count) - count)), pad(targets, (0, round_up(count) - count))
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    keep = trained and keeps_logits(len(hidden), len(weight), device)
    options = (spec, dtype, extra, "entropy" in needs, keep)
    with torch.autocast(device, enabled=False):
        logps, entropy, *rest = _TileScores.apply(hidden, weight, bias, targets, *options)
    stats = {"logps": logps, **dict(zip(extra, rest, strict=True))}
    if "entropy" in needs:
        stats["entropy"] = entropy
    return {name: values[:count] for name, values in stats.items()}


def tile_rows(vocabulary: int, device_type: str) -> int:
    """Rows of a tile: as many as fit the device's budget in float32, between 64 and 1024."""
    budget = TILE_BYTES.get(device_type, TILE_BYTES["cuda"])
    return min(max(budget // (4 * vocabulary), MIN_TILE_ROWS), MAX_TILE_ROWS)


def keeps_logits(rows: int, vocabulary: int, device_type: str) -> bool:
    """Whether the float32 logits of so many rows are kept from the forward to the backward pass."""
    return rows * vocabulary * 4 <= KEPT_BYTES.get(device_type, KEPT_BYTES["cuda"])


def _score_openly(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    spec: HeadSpec,
    dtype: torch.dtype,
    needs: frozenset[str],
) -> dict[str, Tensor]:
    """All logits at once, and by autograd."""
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        products = (hidden.to(dtype) @ weight.to(dtype).t()).to(wide)
        logits = logits_of(spec, products if bias is None else products + bias)  # (R, V)
        log_probs = logits.log_softmax(1)
        own = log_probs.gather(1, targets[:, None]).squeeze(1)
        stats = {"logps": own, "entropy": -torch.linalg.vecdot(log_probs.exp(), log_probs)}
        with torch.no_grad():
            stats["top1"] = (own >= log_probs.amax(1)).to(wide)
            stats["mean_logit"], stats["sum_p2"] = logits.mean(1), log_probs.exp().square().sum(1)
    return {name: values for name, values in stats.items() if name == "logps" or name in needs}


class _TileScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        spec: HeadSpec,
        dtype: torch.dtype,
        extra: tuple[str, ...],
        with_entropy: bool,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        tiles = Tiles(hidden, weight, bias, spec, dtype, num_buffers=2, keep=keep)
        results = {
            name: torch.zeros(len(hidden), dtype=tiles.stat_dtype, device=hidden.device)
            for name in ("logps", "lse", "entropy", *extra)
        }
        for rows in tiles:
            logits = tiles.logits(rows)  # (n, V)
            largest = logits.amax(1)
            powers = torch.sub(logits, largest[:, None], out=tiles.spare(len(largest))).exp_()  # (n, V)
            total = powers.sum(1)
            own, lse = logits.gather(1, targets[rows, None]).squeeze(1), largest + total.log()  # (n,)
            results["logps"][rows], results["lse"][rows] = own - lse, lse
            if "top1" in extra:
                results["top1"][rows] = (own >= largest).to(own.dtype)
            if "mean_logit" in extra:
                results["mean_logit"][rows] = logits.mean(1)
            if with_entropy:
                results["entropy"][rows] = lse - torch.linalg.vecdot(powers, logits) / total
            if "sum_p2" in extra:
                results["sum_p2"][rows] = torch.linalg.vecdot(powers, powers) / total.square()
        ctx.save_for_backward(hidden, weight, bias, targets, results["lse"], results["entropy"])
        ctx.spec, ctx.dtype, ctx.kept = spec, dtype, tiles.kept
        statistics = tuple(results[name] for name in extra)
        ctx.mark_non_differentiable(*statistics)
        return results["logps"], results["entropy"], *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logps: Tensor, grad_entropy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        through_entropy = bool(grad_entropy.count_nonzero())
        tiles = Tiles(
            hidden,
            weight,
            bias,
            ctx.spec,
            ctx.dtype,
            num_buffers=1 + through_entropy + (ctx.spec.softcap is not None),
            kept=ctx.kept,
        )
        ctx.kept = None  # they become their gradient; a second backward pass computes them again
        grad_hidden = torch.zeros_like(hidden, dtype=tiles.stat_dtype) if ctx.needs_input_grad[0] else None
        grad_weight = None if len(hidden) else torch.zeros_like(weight, dtype=tiles.stat_dtype)
        grad_bias = torch.zeros_like(bias, dtype=tiles.stat_dtype) if ctx.needs_input_grad[2] else None
        for rows in tiles:
            grad = tiles.grad_logits(
                rows,
                targets[rows],
                lse[rows],
                entropy[rows],
                grad_logps[rows],
                grad_entropy[rows] if through_entropy else None,
            )  # (n, V)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            product = grad.to(ctx.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (product @ tiles.weight).to(grad_hidden.dtype)
            if ctx.needs_input_grad[1]:
                grad_weight = plus_product(grad_weight, product.t(), tiles.hidden[rows], tiles.stat_dtype)
        grads = (grad_hidden, grad_weight if ctx.needs_input_grad[1] else None, grad_bias)
        inputs = (hidden, weight, bias)
        cast = (None if g is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True))
        return *cast, None, None, None, None, None, None


class Tiles:
    """Slices of rows, and their logits in reused (tile, V) buffers."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        spec: HeadSpec,
        dtype: torch.dtype,
        *,
        num_buffers: int,
        keep: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden.to(dtype), weight.to(dtype), bias
        self.spec = spec
        self.stat_dtype = torch.promote_types(dtype, torch.float32)
        needs_no_tile = kept is not None and num_buffers == 1  # one product is faster than those of several tiles
        tile = len(hidden) if needs_no_tile else tile_rows(len(weight), hidden.device.type)
        self.size = max(min(tile, len(hidden)), 1)
        shape = (self.size, len(weight))
        self._is_kept, self.kept = kept is not None, kept
        if keep:
            self.kept = torch.empty(len(hidden), len(weight), dtype=self.stat_dtype, device=hidden.device)
        first = num_buffers - (self.kept is not None)
        spare = [torch.empty(shape, dtype=self.stat_dtype, device=hidden.device) for _ in range(first)]
        self.buffers = spare if self.kept is None else [self.kept, *spare]
        same = dtype == self.stat_dtype or self._is_kept
        self._product = None if same else torch.empty(shape, dtype=dtype, device=hidden.device)

    def __iter__(self):
        for start in range(0, len(self.hidden), self.size):
            yield slice(start, min(start + self.size, len(self.hidden)))

    def logits(self, rows: slice) -> Tensor:
        """(n, V) logits of a tile, in the first buffer, or where all of them are kept."""
        count = rows.stop - rows.start
        logits = self.buffers[0][:count] if self.kept is None else self.kept[rows]
        if self._is_kept:
            return logits
        if self._product is None:
            torch.mm(self.hidden[rows], self.weight.t(), out=logits)
        else:
            logits.copy_(torch.mm(self.hidden[rows], self.weight.t(), out=self._product[:count]))
        if self.bias is not None:
            logits.add_(self.bias)
        if self.spec.scale != 1.0:
            logits.mul_(self.spec.scale)
        if self.spec.softcap is not None:
            logits.div_(self.spec.softcap).tanh_().mul_(self.spec.softcap)
        return logits

    def spare(self, count: int) -> Tensor:
        """(count, V) of the second buffer."""
        return self.buffers[1][:count]

    def grad_logits(
        self,
        rows: slice,
        targets: Tensor,
        lse: Tensor,
        entropy: Tensor,
        grad_logps: Tensor,
        grad_entropy: Tensor | None,
    ) -> Tensor:
        """(n, V) gradient with respect to the product of head and hidden state, in the place of the logits."""
        logits = self.logits(rows)
        spare = [buffer[: len(logits)] for buffer in self.buffers[1:]]
        chain = None
        if self.spec.softcap is not None:  # d logits / d scaled = 1 - (logits / softcap)²
            chain = torch.div(logits, self.spec.softcap, out=spare.pop()).square_().neg_().add_(1)
        log_probs = logits.sub_(lse[:, None])
        if grad_entropy is None:
            grad = log_probs.exp_().mul_(-grad_logps[:, None])
        else:  # -p (grad_logps + grad_entropy (log p + entropy))
            factor = torch.add(log_probs, entropy[:, None], out=spare.pop()).mul_(grad_entropy[:, None])
            grad = log_probs.exp_().mul_(factor.add_(grad_logps[:, None]).neg_())
        grad.scatter_add_(1, targets[:, None], grad_logps[:, None].to(grad.dtype))
        if chain is not None:
            grad.mul_(chain)
        return grad.mul_(self.spec.scale) if self.spec.scale != 1.0 else grad


def plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Total + left @ right in this dtype, in the place of the total; None is 0, so that it is never filled."""
    if total is None:
        return (left @ right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(left @ right)
