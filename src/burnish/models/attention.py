"""Attention over a `TokenTree`: every completion attends to its prompt and to itself, and a prompt is there once.

Scores are computed in blocks: those of all completions of a prompt against the prompt's keys, and those of each
against its own. With m the largest score of a query and Z the sum of exp(score - m) over both blocks, the output is
sum exp(score - m) v / Z. Only queries, keys, values, the output and log-sum-exp are kept; the backward pass computes
the scores again:

    P = exp(score - lse)   dV = P' dO   dS = P (dO V' - sum dO O)   dQ = dS K   dK = dS' Q

Source: FlashAttention-2 (2307.08691) section 3, without its tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
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
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(query, key, value, tree, sliding_window, scale), None

    AttentionInterface.register(name, attention)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, window: int | None, scale: float) -> Tensor:
    """In blocks, prompts first."""
    flat = (states[0].transpose(0, 1) for states in (query, key, value))  # (S, heads, D)
    with torch.autocast(query.device.type, enabled=False):
        return _TreeAttention.apply(*flat, tree, window, scale)[None]


register_over_trees(NAME, _in_blocks)


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


@dataclass(frozen=True, eq=False)
class _Block:
    """Keys and values that some queries attend to: (B s, n, D), where queries are (B, M, D) in s equal parts.

    `hidden` broadcasts to (P, heads, G, R, T, n): True where a query does not see a key. None: it sees all of them.
    """

    keys: Tensor
    values: Tensor
    hidden: Tensor | None

    def scores(self, queries: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(B, M, n), -inf where a key is hidden."""
        scores = torch.bmm(self.divide(queries), self.keys.mT)
        if self.hidden is not None:
            scores.view(*shape, -1).masked_fill_(self.hidden, -math.inf)
        return scores.view(*queries.shape[:2], -1)

    def divide(self, tensor: Tensor) -> Tensor:
        """(B, M, x) in the parts of this block, (B s, M / s, x)."""
        return tensor.reshape(len(self.keys), -1, tensor.shape[2])


def _attend(queries: Tensor, blocks: list[_Block], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Output (B, M, Dv) and log-sum-exp (B, M, 1) of queries over the keys of all blocks together."""
    scores = [block.scores(queries, shape) for block in blocks]
    largest = scores[0].amax(-1, keepdim=True)
    for more in scores[1:]:
        largest = torch.maximum(largest, more.amax(-1, keepdim=True))
    totals, outputs = list[Tensor](), list[Tensor]()
    for block, weights in zip(blocks, scores, strict=True):
        totals.append(weights.sub_(largest).exp_().sum(-1, keepdim=True))
        outputs.append(torch.bmm(block.divide(weights), block.values).view(*queries.shape[:2], -1))
    total = sum(totals[1:], totals[0])
    return sum(outputs[1:], outputs[0]) / total, largest + total.log()


def _attend_backward(
    queries: Tensor, blocks: list[_Block], shape: tuple[int, ...], grad: Tensor, lse: Tensor, delta: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Gradients of the queries, and of each block's keys and values."""
    grad_queries, grads = torch.zeros_like(queries), list[tuple[Tensor, Tensor]]()
    for block in blocks:
        weights = block.divide(block.scores(queries, shape).sub_(lse).exp_())
        own, own_queries = block.divide(grad), block.divide(queries)
        grad_scores = torch.bmm(own, block.values.mT).sub_(block.divide(delta)).mul_(weights)
        grad_queries += torch.bmm(grad_scores, block.keys).view_as(queries)
        grads.append((torch.bmm(grad_scores.mT, own_queries), torch.bmm(weights.mT, own)))
    return grad_queries, grads


class _Blocks:
    """The row's queries, keys and values, cut along the tree: prompts (P, 1, L), completions (P, G, T)."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, window: int | None, scale: float):
        self.tree, self.heads, self.scale = tree, key.shape[1], scale
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        prompts, answers = tree.prompts[:, None], tree.answers
        self.places = (prompts, answers)
        self.masks = (tree.prompt_mask[:, None], tree.answer_mask)
        self.shapes = tuple(self._shape(places, query.shape[1]) for places in self.places)
        self.queries = tuple(self.as_queries(query, i).mul(scale) for i in (0, 1))
        own = [
            _Block(self._as_keys(key, part), self._as_keys(value, part), _later(places.shape[2], window, key.device))
            for part, places in enumerate(self.places)
        ]
        prefix = _Block(own[0].keys, own[0].values, _hidden_prefix(tree, window))
        self.blocks = ([own[0]], [prefix, own[1]])

    def _shape(self, places: Tensor, num_heads: int) -> tuple[int, ...]:
        prompts, answers, tokens = places.shape
        return (prompts, self.heads, answers, num_heads // self.heads, tokens)

    def _take(self, flat: Tensor, part: int) -> Tensor:
        """(S, heads, D) -> (P, G, T, heads, D) of the prompts (0) or the completions (1); without padding no copy."""
        places = self.places[part]
        if self.tree.is_ragged:
            return flat[places].to(self.dtype)
        num_prompts = self.places[0].numel()
        own = flat[num_prompts:] if part else flat[:num_prompts]
        return own.view(*places.shape, *flat.shape[1:]).to(self.dtype)

    def as_queries(self, flat: Tensor, part: int) -> Tensor:
        """(S, Hq, D) -> (P Hk, G R T, D) of the prompts (0) or the completions (1)."""
        block = self._take(flat, part).unflatten(3, (self.heads, -1))  # (P, G, T, Hk, R, D)
        block = block.permute(0, 3, 1, 4, 2, 5)
        return block.reshape(block.shape[0] * self.heads, -1, flat.shape[-1])

    def _as_keys(self, flat: Tensor, part: int) -> Tensor:
        """(S, Hk, D) -> (P Hk G, T, D)."""
        block = self._take(flat, part).permute(0, 3, 1, 2, 4)  # (P, Hk, G, T, D)
        return block.reshape(-1, block.shape[3], block.shape[4])

    def gradient(self, flat: Tensor, part: int) -> Tensor:
        """As `as_queries`, and 0 at padding, so that it adds nothing to any key or value."""
        blocks = self.as_queries(flat, part)
        if not self.tree.is_ragged:
            return blocks
        mask = self.masks[part][:, None, :, None, :, None]  # (P, 1, G, 1, T, 1)
        return (blocks.view(*self.shapes[part], -1) * mask).view_as(blocks)

    def from_queries(self, parts: list[Tensor]) -> Tensor:
        """Blocks of queries -> (S, Hq, D)."""
        shaped = [
            part.view(*shape, -1).permute(0, 2, 4, 1, 3, 5) for part, shape in zip(parts, self.shapes, strict=True)
        ]
        return self._flat([part.flatten(3, 4) for part in shaped])

    def from_keys(self, parts: list[Tensor]) -> Tensor:
        """Blocks of keys -> (S, Hk, D)."""
        shaped = [
            part.view(places.shape[0], self.heads, *places.shape[1:], -1).permute(0, 2, 3, 1, 4)
            for part, places in zip(parts, self.places, strict=True)
        ]
        return self._flat(shaped)

    def _flat(self, parts: list[Tensor]) -> Tensor:
        joined = torch.cat([part.flatten(0, 2) for part in parts])
        return joined[self.tree.source] if self.tree.is_ragged else joined


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, window: int | None, scale: float
    ) -> Tensor:
        parts = _Blocks(query, key, value, tree, window, scale)
        outputs, lses = zip(*(_attend(parts.queries[i], parts.blocks[i], parts.shapes[i]) for i in (0, 1)), strict=True)
        output = parts.from_queries(list(outputs)).to(query.dtype)
        ctx.save_for_backward(query, key, value, output, *lses)
        ctx.tree, ctx.window, ctx.scale = tree, window, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *lses = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            parts = _Blocks(query, key, value, ctx.tree, ctx.window, ctx.scale)
            delta = (grad.to(parts.dtype) * output).sum(-1, keepdim=True)  # (S, Hq, 1)
            of_queries, of_blocks = zip(
                *(
                    _attend_backward(
                        parts.queries[i],
                        parts.blocks[i],
                        parts.shapes[i],
                        parts.gradient(grad, i),
                        lses[i],
                        parts.gradient(delta, i),
                    )
                    for i in (0, 1)
                ),
                strict=True,
            )
            (own_prompt,), (prefix, own) = of_blocks
            of_keys, of_values = ([own_prompt[i].add_(prefix[i]), own[i]] for i in (0, 1))
            grad_query = parts.from_queries(list(of_queries)).mul_(ctx.scale).to(query.dtype)
            return (
                grad_query,
                parts.from_keys(of_keys).to(key.dtype),
                parts.from_keys(of_values).to(value.dtype),
                None,
                None,
                None,
            )


def _later(length: int, window: int | None, device: torch.device) -> Bool[Tensor, "T T"]:
    """A query does not see the keys after it, nor those that its window has left behind."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.triu(1) if window is None else ones.triu(1) | ones.tril(-window)


def _hidden_prefix(tree: TokenTree, window: int | None) -> Bool[Tensor, "P 1 1 1 T L"] | None:
    """Which of its prompt's keys a completion's token does not see: padding, and what its window has left behind."""
    hidden = ~tree.prompt_mask[:, None, None, None, None, :]
    if window is None:
        return hidden if tree.has_short_prompts else None
    lengths = tree.prompt_mask.sum(1).view(-1, 1, 1, 1, 1, 1)
    tokens = torch.arange(tree.answers.shape[2], device=lengths.device)[:, None]
    return hidden | (lengths + tokens - torch.arange(tree.prompts.shape[1], device=lengths.device) >= window)
