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

from burnish.models import head as tiled_head
from burnish.models.divergence import Teacher, divergence_from
from burnish.models.introspect import HeadSpec, RouterSpec, head_of, inspect_head, inspect_router, trunk_of
from burnish.models.lean import install_lean
from burnish.models.routing import load_balancing_loss
from burnish.models.sharing import Sharing, choose_sharing, run_trunk
from burnish.types import TokenBatch, TokenStats

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NEEDS = (*tiled_head.STATISTICS, "hidden", "divergence", "aux_loss")
AS_TEACHER = frozenset({"teacher"})


def install_forward(
    model: PreTrainedModel,
    *,
    prefix_sharing: str = "auto",
    lean_activations: str = "auto",
    gradient_checkpointing: bool = False,
) -> Sharing:
    """Teach a causal model to score a `TokenBatch`. Its weights, checkpoints and other calls do not change.

    Args:
        model: not wrapped.
        prefix_sharing: how prompts that several completions share are run; see `choose_sharing`.
        lean_activations: whether layers keep less for the backward pass; see `install_lean`.
        gradient_checkpointing: it will be trained so; `choose_sharing` then finds out how prompts are run there.

    Returns:
        How they are run.

    Raises:
        UnsupportedModelError: the model's head cannot be reproduced exactly.
        ValueError: `prefix_sharing` or `lean_activations` is unknown, or changes what this model computes.
    """
    spec, router = inspect_head(model), inspect_router(model)
    install_lean(trunk_of(model), lean_activations)
    sharing = choose_sharing(trunk_of(model), prefix_sharing, gradient_checkpointing=gradient_checkpointing)
    own_forward = type(model).forward

    @functools.wraps(own_forward)  # generate() reads the signature
    def forward_or_score(
        self: PreTrainedModel,
        *args: Any,
        token_batch: TokenBatch | None = None,
        needs: frozenset[str] = frozenset(),
        teacher: Teacher | None = None,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> Any:
        if token_batch is None:
            return own_forward(self, *args, **kwargs)
        tempered = spec.at_temperature(temperature)
        return _score(self, token_batch, spec=tempered, router=router, sharing=sharing, needs=needs, teacher=teacher)

    model.forward = MethodType(forward_or_score, model)
    return sharing


def forward(
    model: nn.Module,
    batch: TokenBatch,
    *,
    needs: Iterable[str] = (),
    teacher: Teacher | None = None,
    temperature: float = 1.0,
) -> TokenStats:
    """Per-token statistics of the batch's completions under a model.

    Args:
        model: a model with `install_forward`, bare or wrapped (DDP, FSDP, PEFT, autocast).
        batch: prompts and completions; only tokens of `loss_mask` are scored.
        needs: any of `NEEDS`: `entropy`, `top1`, `mean_logit`, `sum_p2`, `hidden`, `divergence`, `aux_loss`. What is
            not asked for is not computed.
        teacher: the other model of `divergence`, KL(teacher || model) of the next-token distributions.
        temperature: the statistics are of softmax(logits / temperature), above 0: what answers were sampled from.

    Returns:
        `TokenStats` aligned with `batch.completion_ids`, exactly 0 outside `batch.loss_mask`.

    Raises:
        ValueError: an unknown need, `divergence` without a teacher or with one of another vocabulary or batch,
            `aux_loss` of a model without a load-balancing loss, or a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}; allowed: above 0. Greedy answers have no distribution to score")
    wanted = frozenset(needs)
    if unknown := wanted - set(NEEDS):
        raise ValueError(f"unknown token statistics {sorted(unknown)}; known: {', '.join(NEEDS)}")
    if "divergence" in wanted and teacher is None:
        raise ValueError("divergence compares two models: pass teacher=teacher_of(other_model, batch)")
    outputs: dict[str, Tensor] = model(token_batch=batch, needs=wanted, teacher=teacher, temperature=temperature)
    core = {name: outputs[name] for name in ("logps", "entropy", "hidden", "aux_loss") if name in outputs}
    extra = {name: tensor for name, tensor in outputs.items() if name not in core}
    return TokenStats(mask=batch.loss_mask, extra=extra, **core)


@torch.no_grad()
def teacher_of(model: nn.Module, batch: TokenBatch) -> Teacher:
    """A model with `install_forward`, bare or wrapped, as the teacher of a parcel; without gradient."""
    return model(token_batch=batch, needs=AS_TEACHER)["teacher"]


def _score(
    model: PreTrainedModel,
    batch: TokenBatch,
    *,
    spec: HeadSpec,
    router: RouterSpec | None,
    sharing: Sharing,
    needs: frozenset[str],
    teacher: Teacher | None,
) -> dict[str, Any]:
    """Trunk and head of one micro-batch; plain tensors, so that every wrapper finds them."""
    if router is None and "aux_loss" in needs:
        raise ValueError(
            f"aux_loss is the load-balancing loss of a mixture of experts; {type(model).__name__} is none, or reports "
            'no such loss that can be computed from its router logits: leave "aux_loss" out, and router_aux_loss_coef=0'
        )
    rows = run_trunk(trunk_of(model), batch, sharing=sharing, output_router_logits="aux_loss" in needs)
    hidden = rows.hidden  # (N, T+1, H)
    mask, head = batch.loss_mask, head_of(model)
    if needs == AS_TEACHER:
        return {"teacher": Teacher(hidden, head.weight, head.bias, spec)}
    scored = mask if tiled_head.TILED else batch.completion_mask
    states = hidden[:, :-1][scored]  # (R, H)
    states = states.to(torch.promote_types(states.dtype, head.weight.dtype))  # a float32 adapter on a bfloat16 head
    stats = tiled_head.score_tokens(
        states,
        head.weight,
        head.bias,
        batch.completion_ids[scored],
        spec=spec,
        needs=needs & set(tiled_head.STATISTICS),
    )
    if teacher is not None and "divergence" in needs:
        stats["divergence"] = divergence_from(teacher, scored, states, head.weight, head.bias, spec=spec)
    outputs = {name: _scatter(values[mask[scored]], mask) for name, values in stats.items()}
    if router is not None and "aux_loss" in needs:
        outputs["aux_loss"] = load_balancing_loss(router, rows)
    return {**outputs, "hidden": hidden} if "hidden" in needs else outputs


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """(R,) numbers of the masked tokens -> (N, T), 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
