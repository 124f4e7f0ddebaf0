"""THE forward: (model, TokenBatch) -> TokenStats, for policy, reference and every trainer.

Trunk and head run inside one call of the wrapped `model(...)`, so that DDP, FSDP, autocast and PEFT see all of it.
For that, `install_forward` gives the model a `forward` that also understands `token_batch=`; any other call goes to
the model's own. Install it before PEFT and before `accelerator.prepare`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from burnish.models.head import STATISTICS, score_tokens
from burnish.models.introspect import HeadSpec, head_of, inspect_head, trunk_of
from burnish.models.layout import run_rows
from burnish.types import TokenBatch, TokenStats

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NEEDS = (*STATISTICS, "hidden")


def install_forward(model: PreTrainedModel) -> HeadSpec:
    """Teach a causal model to score a `TokenBatch`. Its weights, checkpoints and other calls do not change.

    Raises:
        UnsupportedModelError: the model's head cannot be reproduced exactly.
    """
    spec = inspect_head(model)
    own_forward = type(model).forward

    @functools.wraps(own_forward)  # generate() reads the signature
    def forward_or_score(
        self: PreTrainedModel,
        *args: Any,
        token_batch: TokenBatch | None = None,
        needs: frozenset[str] = frozenset(),
        **kwargs: Any,
    ) -> Any:
        if token_batch is None:
            return own_forward(self, *args, **kwargs)
        return _score(self, token_batch, spec=spec, needs=needs)

    model.forward = MethodType(forward_or_score, model)
    return spec


def forward(model: nn.Module, batch: TokenBatch, *, needs: Iterable[str] = ()) -> TokenStats:
    """Per-token statistics of the batch's completions under a model.

    Args:
        model: a model with `install_forward`, bare or wrapped (DDP, FSDP, PEFT, autocast).
        batch: prompts and completions; only tokens of `loss_mask` are scored.
        needs: any of `entropy`, `top1`, `mean_logit`, `sum_p2`, `hidden`. What is not asked for is not computed.

    Returns:
        `TokenStats` aligned with `batch.completion_ids`, exactly 0 outside `batch.loss_mask`.
    """
    outputs: dict[str, Tensor] = model(token_batch=batch, needs=frozenset(needs))
    core = {name: outputs[name] for name in ("logps", "entropy", "hidden") if name in outputs}
    extra = {name: tensor for name, tensor in outputs.items() if name not in core}
    return TokenStats(mask=batch.loss_mask, extra=extra, **core)


def _score(model: PreTrainedModel, batch: TokenBatch, *, spec: HeadSpec, needs: frozenset[str]) -> dict[str, Tensor]:
    """Trunk and head of one micro-batch; plain tensors, so that every wrapper finds them."""
    hidden = run_rows(trunk_of(model), batch)  # (N, T+1, H)
    mask = batch.loss_mask
    head = head_of(model)
    stats = score_tokens(
        hidden[:, :-1][mask],
        head.weight,
        head.bias,
        batch.completion_ids[mask],
        spec=spec,
        needs=needs - {"hidden"},
    )
    outputs = {name: _scatter(values, mask) for name, values in stats.items()}
    return {**outputs, "hidden": hidden} if "hidden" in needs else outputs


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """(R,) numbers of the masked tokens -> (N, T), 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
