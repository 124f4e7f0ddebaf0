"""Layouts: how the trunk is run over a `TokenBatch`. Each is (trunk, batch) -> RowOutputs, and changes no value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from burnish.models.introspect import places_tokens
from burnish.models.vision import image_inputs

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from burnish.types import TokenBatch


@dataclass(frozen=True)
class RowOutputs:
    """What the trunk says of each row.

    Attributes:
        hidden: (N, T+1, H) the state before each completion token, and after the last.
        attention_mask: (N, L+T) 1 where a token is, in the order of the router logits.
        router_logits: per mixture layer (N (L+T), experts), padding included; none unless asked for.
    """

    hidden: Float[Tensor, "N T1 H"]
    attention_mask: Int[Tensor, "N LT"]
    router_logits: tuple[Float[Tensor, "NLT E"], ...] = ()


def run_rows(trunk: nn.Module, batch: TokenBatch, *, output_router_logits: bool = False) -> RowOutputs:
    """One row for each completion: its prompt, then its tokens.

    Prompts are left-padded and completions right-padded, so every completion starts in the same column and the
    state before its first token is the prompt's last one. Positions count real tokens only. The images of a prompt go
    along with each of its rows; where they shape the positions, the trunk counts them itself.

    Args:
        trunk: of a causal model.
        batch: N rows.
        output_router_logits: also what the routers of a mixture of experts say; a dense trunk does not take it.
    """
    prompt_ids, prompt_mask = (
        batch.prompt_ids[batch.prompt_index],
        batch.prompt_mask[batch.prompt_index],
    )  # (N, L)
    input_ids = torch.cat([prompt_ids, batch.completion_ids], dim=1)  # (N, L+T)
    mask = torch.cat([prompt_mask, batch.completion_mask], dim=1).long()  # (N, L+T)
    inputs: dict[str, Any] = dict(image_inputs(batch))
    if not (inputs and places_tokens(trunk)):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # (N, L+T)
    if output_router_logits:
        inputs["output_router_logits"] = True
    outputs = trunk(input_ids=input_ids, attention_mask=mask, use_cache=False, **inputs)
    return RowOutputs(
        hidden=outputs[0][:, prompt_ids.shape[1] - 1 :],
        attention_mask=mask,
        router_logits=outputs.router_logits if output_router_logits else (),
    )
