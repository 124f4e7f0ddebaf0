"""The load-balancing loss of a mixture of experts, as its family defines it, over the real tokens of a micro-batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.models.introspect import RouterSpec
    from burnish.models.layout import RowOutputs


def load_balancing_loss(spec: RouterSpec, outputs: RowOutputs) -> Float[Tensor, ""]:
    """The family's loss on the routers' logits of all real tokens, prompts included; padding does not count.

    For most families, over the tokens of all mixture layers together, E experts and k of them per token:

        loss = E sum over experts of (share of tokens that chose it, k in all) x (its mean routing probability)

    which is k where every expert gets the same number of tokens.

    Args:
        spec: from `inspect_router`.
        outputs: of `run_rows` with `output_router_logits`.

    Raises:
        ValueError: the trunk is trained, and the logits carry no gradient.

    Source: Switch Transformers (2101.03961) eq. 4-6.
    """
    if outputs.hidden.requires_grad and not any(logits.requires_grad for logits in outputs.router_logits):
        raise ValueError(
            "the load-balancing loss has no gradient: reentrant activation checkpointing cuts the routers off (set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}), or nothing that is trained lies before a router '
            "(set router_aux_loss_coef=0)"
        )
    return spec.loss_function(
        outputs.router_logits, spec.num_experts, top_k=spec.top_k, attention_mask=outputs.attention_mask
    )
