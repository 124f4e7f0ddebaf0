"""Layouts: how a trunk is run over a `TokenBatch`. Each is (trunk, batch) -> RowOutputs, and changes no value.

`rows` gives every completion its prompt again. `cache` runs each prompt once, and its completions on the keys and
values that the model's own cache kept, under autograd. `tree` runs prompts and completions as one row without any
padding, with an attention that knows the tree: on a CPU put together from torch's flash attention
(`models.attention`), on CUDA flex attention (`models.flex`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from burnish.models import attention, flex
from burnish.models.attention import attention_of
from burnish.models.flash import runs_flash
from burnish.models.introspect import places_tokens
from burnish.models.recomputed import also_when_recomputed
from burnish.models.tree import make_tree
from burnish.models.vision import image_inputs

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor, nn

    from burnish.models.tree import TokenTree
    from burnish.types import TokenBatch


@dataclass(frozen=True)
class RowOutputs:
    """What the trunk says of each row.

    Attributes:
        hidden: (N, T+1, H) the state before each completion token, and after the last; anything at padding.
        attention_mask: (N, L+T) 1 where a token is, in the order of the router logits.
        router_logits: per mixture layer (N (L+T), experts), padding included; none unless asked for.
    """

    hidden: Float[Tensor, "N T1 H"]
    attention_mask: Int[Tensor, "N LT"]
    router_logits: tuple[Float[Tensor, "NLT E"], ...] = ()


Layout = Callable[..., RowOutputs]


@dataclass(frozen=True)
class TreeAttention:
    """An attention over a tree.

    Attributes:
        name: under which transformers knows it.
        keeps_scores: the scores of a layer are in memory, so that a large tree does not fit.
        words: what the line about the layout says of it.
    """

    name: str
    keeps_scores: bool
    words: str = ""


# By the type of the device. Others have none: flex attention has no gradient there, or nobody tried.
TREE_ATTENTIONS = {
    "cpu": TreeAttention(attention.NAME, keeps_scores=not runs_flash("cpu")),
    "cuda": TreeAttention(flex.NAME, keeps_scores=False, words=", flex attention"),
}


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


def run_cache(trunk: nn.Module, batch: TokenBatch, *, output_router_logits: bool = False) -> RowOutputs:
    """Prompts once, then the completions on the prompts' keys and values, each repeated for its completions.

    Gradients reach a prompt through the cached keys and values. Whatever the model's attention is, it stays.
    """
    wanted: dict[str, Any] = {"output_router_logits": True} if output_router_logits else {}
    config: Any = trunk.config
    cache = DynamicCache(config=config)
    prompt_mask = batch.prompt_mask.long()
    mask = torch.cat([prompt_mask[batch.prompt_index], batch.completion_mask.long()], dim=1)  # (N, L+T)
    of_prompts = trunk(
        input_ids=batch.prompt_ids,
        attention_mask=prompt_mask,
        position_ids=(prompt_mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        **wanted,
    )
    cache.reorder_cache(batch.prompt_index)  # pyright: ignore[reportArgumentType]
    of_completions = trunk(
        input_ids=batch.completion_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1)[:, batch.prompt_ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        **wanted,
    )
    before = of_prompts[0][:, -1][batch.prompt_index]  # (N, H)
    router_logits: list[Tensor] = []
    if output_router_logits:
        for prompts, completions in zip(of_prompts.router_logits, of_completions.router_logits, strict=True):
            repeated = prompts.unflatten(0, batch.prompt_ids.shape)[batch.prompt_index]  # (N, L, E)
            both = torch.cat([repeated, completions.unflatten(0, batch.completion_ids.shape)], dim=1)
            router_logits.append(both.flatten(0, 1))
    hidden = torch.cat([before[:, None], of_completions[0]], dim=1)
    return RowOutputs(hidden=hidden, attention_mask=mask, router_logits=tuple(router_logits))


def run_tree(
    trunk: nn.Module, batch: TokenBatch, *, output_router_logits: bool = False, tree: TokenTree | None = None
) -> RowOutputs:
    """Prompts and completions as one row of real tokens; `tree` is the batch's, made if None.

    Layers that are computed again in the backward pass have the tree among their arguments, and its attention again.
    """
    tree = make_tree(batch) if tree is None else tree
    wanted: dict[str, Any] = {"output_router_logits": True} if output_router_logits else {}
    over_trees = partial(attention_of, trunk, TREE_ATTENTIONS[batch.prompt_ids.device.type].name)
    with over_trees(), also_when_recomputed(trunk, over_trees):
        outputs = trunk(
            input_ids=tree.input_ids(batch),
            position_ids=tree.position_ids(),
            use_cache=False,
            token_tree=tree,
            **wanted,
        )
    places, mask = tree.rows()
    router_logits = outputs.router_logits if output_router_logits else ()
    return RowOutputs(
        hidden=outputs[0][0][tree.states()],
        attention_mask=mask.long(),
        router_logits=tuple(layer[places.flatten()] for layer in router_logits),
    )


LAYOUTS: dict[str, Layout] = {"tree": run_tree, "cache": run_cache, "rows": run_rows}
