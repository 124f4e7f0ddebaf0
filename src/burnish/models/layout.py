"""Layouts: how the trunk is run over a `TokenBatch`. Every layout is (trunk, batch) -> hidden, and changes no value."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from burnish.models.introspect import places_tokens
from burnish.models.vision import image_inputs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from burnish.types import TokenBatch


def run_rows(trunk: nn.Module, batch: TokenBatch) -> Float[Tensor, "N T1 H"]:
    """One row for each completion: its prompt, then its tokens.

    Prompts are left-padded and completions right-padded, so every completion starts in the same column and the
    state before its first token is the prompt's last one. Positions count real tokens only. The images of a prompt go
    along with each of its rows; where they shape the positions, the trunk counts them itself.

    Returns:
        (N, T+1, H): the state before each completion token, and after the last.
    """
    prompt_ids, prompt_mask = (
        batch.prompt_ids[batch.prompt_index],
        batch.prompt_mask[batch.prompt_index],
    )  # (N, L)
    input_ids = torch.cat([prompt_ids, batch.completion_ids], dim=1)  # (N, L+T)
    mask = torch.cat([prompt_mask, batch.completion_mask], dim=1).long()  # (N, L+T)
    inputs = image_inputs(batch)
    if not (inputs and places_tokens(trunk)):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)  # (N, L+T)
    hidden = trunk(input_ids=input_ids, attention_mask=mask, use_cache=False, **inputs)[0]
    return hidden[:, prompt_ids.shape[1] - 1 :]
