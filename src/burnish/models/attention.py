"""Attention over a `TokenTree`: every completion attends to its prompt and to itself, and a prompt is there once.

It is three plain attentions: of the prompts, of all completions of a prompt over the prompt, and of each completion
over itself. The last two are of the same queries, and become one by their log-sum-exps l:

    l = log(exp l1 + exp l2)        O = exp(l1 - l) O1 + exp(l2 - l) O2

The backward pass takes the three apart again. Given l and O of the whole, each gives its own part of the gradients:

    P = exp(score - l)   dV = P' dO   dS = P (dO V' - sum dO O)   dQ = dS K   dK = dS' Q

On a CPU each is torch's flash attention, which keeps no scores; where that cannot run, the same is done in the open.

Source: FlashAttention-2 (2307.08691) section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from burnish.models.flash import Sight, attend, attend_backward

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import nn

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
    flat = (states[0].transpose(0, 1) for states in (query, key, value))  # (S, heads, D)
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


class _Cut:
    """The row of a tree cut into prompts (P, 1, L), part 0, and completions (P, G, T), part 1."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree = tree
        self.places = (tree.prompts[:, None], tree.answers)
        self.masks = (tree.prompt_mask[:, None], tree.answer_mask)

    def parts(self, row: Float[Tensor, "S heads D"]) -> list[Float[Tensor, "P G T heads D"]]:
        """Both parts; without padding no copies."""
        if self.tree.is_ragged:
            return [row[places] for places in self.places]
        count = self.places[0].numel()
        return [row[:count].unflatten(0, self.places[0].shape), row[count:].unflatten(0, self.places[1].shape)]

    def gradients(self, row: Float[Tensor, "S heads D"]) -> list[Float[Tensor, "P G T heads D"]]:
        """As `parts`, and 0 at padding, so that it adds nothing to any key or value."""
        parts = self.parts(row)
        if not self.tree.is_ragged:
            return parts
        return [part * mask[..., None, None] for part, mask in zip(parts, self.masks, strict=True)]

    def join(self, prompts: Float[Tensor, "PL heads D"], answers: Float[Tensor, "PGT heads D"]) -> Tensor:
        """Both parts, flat, as one row (S, heads, D)."""
        joined = torch.cat([prompts, answers])
        return joined[self.tree.source] if self.tree.is_ragged else joined


@dataclass(frozen=True, eq=False)
class _Span:
    """One of the three attentions.

    Attributes:
        queries: the part they are of, prompts (0) or completions (1).
        keys: the part that they are of.
        sight: which keys a query sees.
        together: all completions of a prompt are one sequence; else each is one.
    """

    queries: int
    keys: int
    sight: Sight
    together: bool = False

    def sequences(self, part: Float[Tensor, "P G T heads D"]) -> Float[Tensor, "B heads M D"]:
        """What `attend` takes."""
        return (part.flatten(1, 2) if self.together else part.flatten(0, 1)).transpose(1, 2)

    def attend(self, query: list[Tensor], key: list[Tensor], value: list[Tensor], scale: float) -> list[Tensor]:
        """Output and log-sum-exp of its queries, flat."""
        own, keys, values = map(self.sequences, (query[self.queries], key[self.keys], value[self.keys]))
        return [_flat(found) for found in attend(own, keys, values, self.sight, scale)]

    def gradients(
        self,
        of_queries: Sequence[Float[Tensor, "P G T Hq D"]],
        of_keys: Sequence[Float[Tensor, "P G T Hk D"]],
        scale: float,
    ) -> list[Tensor]:
        """Of its queries, keys and values, flat.

        Args:
            of_queries: gradient of the output, query, output, and log-sum-exp of its part.
            of_keys: key and value of its part.
            scale: of the scores.
        """
        grad, query, output, lse = map(self.sequences, of_queries)
        key, value = map(self.sequences, of_keys)
        return [_flat(g) for g in attend_backward(grad, query, key, value, output, lse, self.sight, scale)]


def _flat(sequences: Float[Tensor, "B heads M D"]) -> Float[Tensor, "BM heads D"]:
    return sequences.transpose(1, 2).flatten(0, 1)


def _spans(tree: TokenTree, window: int | None) -> tuple[_Span, _Span, _Span]:
    """Prompts over themselves, completions over their prompts, and completions over themselves."""
    return (
        _Span(0, 0, _before(tree.prompts, window)),
        _Span(1, 0, _prefix(tree, window), together=True),
        _Span(1, 1, _before(tree.answers, window)),
    )


def _before(places: Tensor, window: int | None) -> Sight:
    """A token of a sequence sees those before it, as far as its window reaches."""
    if window is None:
        return Sight(later=False)
    ones = torch.ones(places.shape[-1], places.shape[-1], dtype=torch.bool, device=places.device)
    return Sight(hidden=(ones.triu(1) | ones.tril(-window))[None, None])


def _prefix(tree: TokenTree, window: int | None) -> Sight:
    """Which of its prompt's keys a completion's token does not see: padding, and what its window has left behind."""
    hidden = ~tree.prompt_mask[:, None, None, :]  # (P, 1, 1, L)
    if window is None:
        return Sight(hidden=hidden if tree.has_short_prompts else None)
    _, num_answers, num_tokens = tree.answers.shape
    places = torch.arange(num_tokens, device=hidden.device).repeat(num_answers)[:, None]  # (G T, 1)
    lengths = tree.prompt_mask.sum(1).view(-1, 1, 1, 1)
    distance = lengths + places - torch.arange(hidden.shape[-1], device=hidden.device)
    return Sight(hidden=hidden | (distance >= window))


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, window: int | None, scale: float
    ) -> Tensor:
        cut = _Cut(tree)
        queries, keys, values = (cut.parts(row) for row in (query, key, value))
        found = [span.attend(queries, keys, values, scale) for span in _spans(tree, window)]
        (of_prompts, prompts_lse), (over_prompt, prompt_lse), (over_own, own_lse) = found
        share = (own_lse - prompt_lse).sigmoid()
        of_answers = torch.lerp(over_prompt.to(share.dtype), over_own.to(share.dtype), share).to(query.dtype)
        output = cut.join(of_prompts, of_answers)
        ctx.save_for_backward(query, key, value, output, prompts_lse, torch.logaddexp(prompt_lse, own_lse))
        ctx.tree, ctx.window, ctx.scale = tree, window, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *lses = ctx.saved_tensors
        cut, dtype = _Cut(ctx.tree), lses[0].dtype  # products of small blocks in bfloat16 are slower, and less exact
        lse = [part.unflatten(0, places.shape) for part, places in zip(lses, cut.places, strict=True)]
        with torch.autocast(grad.device.type, enabled=False):
            queries, keys, values, outputs = (cut.parts(row.to(dtype)) for row in (query, key, value, output))
            of_queries = list(zip(cut.gradients(grad.to(dtype)), queries, outputs, lse, strict=True))
            of_keys = list(zip(keys, values, strict=True))
            of_prompts, prefix, own = (
                span.gradients(of_queries[span.queries], of_keys[span.keys], ctx.scale)
                for span in _spans(ctx.tree, ctx.window)
            )
        return (
            cut.join(of_prompts[0], prefix[0] + own[0]).to(query.dtype),
            cut.join(of_prompts[1] + prefix[1], own[1]).to(key.dtype),
            cut.join(of_prompts[2] + prefix[2], own[2]).to(value.dtype),
            None,
            None,
            None,
        )
