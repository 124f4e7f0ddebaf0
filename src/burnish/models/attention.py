"""Attention over a `TokenTree`: every completion attends to its prompt and to itself, and a prompt is there once.

It is three plain attentions (`models.spans`): of the prompts, of all completions of a prompt over the prompt, and of
each completion over itself. The last two are of the same queries, and become one by their log-sum-exps l:

    l = log(exp l1 + exp l2)        O = exp(l1 - l) O1 + exp(l2 - l) O2

The backward pass takes the three apart again. Given l and O of the whole, each gives its own part of the gradients:

    P = exp(score - l)   dV = P' dO   dS = P (dO V' - sum dO O)   dQ = dS K   dK = dS' Q

On a CPU each is torch's flash attention, which keeps no scores; where that cannot run, the same is done in the open.

Source: FlashAttention-2 (2307.08691) section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from burnish.models.spans import make_spans

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import nn

    from burnish.models.spans import Span
    from burnish.models.tree import TokenTree

NAME = "burnish_tree"
_PLAIN_TENSORS = ("position_ids", "cache_position")


# query (1, Hq, S, D), key (1, Hk, S, D), value (1, Hk, S, Dv), tree, window, scale -> (1, S, Hq, Dv)
TreeAttention = Callable[[Tensor, Tensor, Tensor, "TokenTree", "int | None", float], Tensor]


def register_over_trees(name: str, attend: TreeAttention) -> None:
    """Let transformers know an attention over trees by a name.

    In a layer whose attention is more than softmax(scaling q k) v over a sliding window, it raises
    `NotImplementedError`; whoever tries out attentions takes another one.
    """

    @torch.compiler.disable
    def attention(
        module: nn.Module,
        query: Float[Tensor, "1 Hq S D"],
        key: Float[Tensor, "1 Hk S D"],
        value: Float[Tensor, "1 Hk S Dv"],
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        token_tree: TokenTree | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "1 S Hq Dv"], None]:
        del module
        tree = _checked_tree(token_tree, attention_mask, dropout, sliding_window, kwargs)
        dtype = _product_dtype(query)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        with torch.autocast(query.device.type, enabled=False):
            return attend(query.to(dtype), key.to(dtype), value.to(dtype), tree, sliding_window, scale), None

    AttentionInterface.register(name, attention)


def _product_dtype(states: Tensor) -> torch.dtype:
    """What products are computed in: what autocast asks for, which lets float64 be."""
    device = states.device.type
    casts = torch.is_autocast_enabled(device) and states.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else states.dtype


def _in_spans(query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, window: int | None, scale: float) -> Tensor:
    """As three attentions, prompts first."""
    flat = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))  # (S, heads, D)
    return _TreeAttention.apply(*flat, tree, window, scale)[None]


register_over_trees(NAME, _in_spans)


def _checked_tree(
    tree: TokenTree | None,
    attention_mask: Tensor | None,
    dropout: float,
    sliding_window: int | None,
    others: Mapping[str, Any],
) -> TokenTree:
    """The tree of a layer that adds nothing else to its attention; it learns of the layer's window.

    Raises:
        NotImplementedError: there is no tree, or the layer's attention is more than plain.
    """
    if tree is None:
        raise NotImplementedError("attention over a tree without its tree")
    refuse_more_than_plain(attention_mask, dropout, others)
    if sliding_window is not None:
        tree.windows.append(sliding_window)
    return tree


def refuse_more_than_plain(attention_mask: Tensor | None, dropout: float, others: Mapping[str, Any]) -> None:
    """An attention of ours stands in for softmax(scaling q k) v, and for nothing that a layer adds to it.

    Args:
        attention_mask: what transformers made; None for an attention that is registered without a mask.
        dropout: of the attention weights.
        others: the other arguments of the layer.

    Raises:
        NotImplementedError: there is more; whoever tries out attentions takes another one.
    """
    unknown = [name for name, item in others.items() if isinstance(item, Tensor) and name not in _PLAIN_TENSORS]
    if attention_mask is not None or dropout or unknown or others.get("softcap") is not None:
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'a mask, a softcap or dropout of its own'}")


@contextmanager
def attention_of(trunk: nn.Module, name: str) -> Iterator[None]:
    """The trunk's layers call the attention of this name, for as long as this is open."""
    config: Any = trunk.config
    own, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = own


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, window: int | None, scale: float
    ) -> Tensor:
        found = [span.attend(query, key, value, scale) for span in _spans(tree, window)]
        (of_prompts, prompts_lse), (over_prompt, prompt_lse), (over_own, own_lse) = found
        share = (own_lse - prompt_lse).sigmoid()
        of_answers = torch.lerp(over_prompt.to(share.dtype), over_own.to(share.dtype), share).to(query.dtype)
        output = torch.cat([of_prompts, of_answers])
        lse = torch.cat([prompts_lse, torch.logaddexp(prompt_lse, own_lse)])
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.tree, ctx.window, ctx.scale = tree, window, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        # in float32: products of small blocks in bfloat16 are slower, and less exact
        grad, *states = (tensor.to(lse.dtype) for tensor in (grad, query, key, value, output))
        with torch.autocast(grad.device.type, enabled=False):
            of_prompts, prefix, own = (
                span.gradients(grad, *states, lse=lse, scale=ctx.scale) for span in _spans(ctx.tree, ctx.window)
            )
            of_query = torch.cat([of_prompts[0], prefix[0] + own[0]])
            of_key, of_value = (torch.cat([of_prompts[n] + prefix[n], own[n]]) for n in (1, 2))
        return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), None, None, None


def _spans(tree: TokenTree, window: int | None) -> tuple[Span, Span, Span]:
    """Of a tree, which all layers with one window share."""
    if window not in tree.spans:
        tree.spans[window] = make_spans(tree, window)
    return tree.spans[window]
