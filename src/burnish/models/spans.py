"""The plain attentions that attention over a `TokenTree` is put together from, and which tokens each is of.

A span is one kind of them: prompts over themselves, completions over their prompts, completions over themselves. Its
sequences are computed in blocks of about one length, so that there is little padding, and none where all are as long.
Between, everything is in the order of the row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from burnish.models.flash import Sight, attend, attend_backward

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from burnish.models.tree import TokenTree

MAX_PADDING, FREE_PADDING = 1 / 8, 16  # of the longest sequence of a block; tokens that cost less than another block


@dataclass(frozen=True, eq=False)
class Sequences:
    """B sequences of at most M tokens of the row, right-padded.

    Attributes:
        places: (B, M) the place of each token in the row; 0 for padding.
        mask: (B, M) a token is there; None: everywhere.
        start: where the first one begins, if they follow each other in the row; None: they do not.
    """

    places: Int[Tensor, "B M"]
    mask: Bool[Tensor, "B M"] | None
    start: int | None

    @classmethod
    def of(cls, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Sequences:
        """Those that begin at these places and are so long, of which there is at least one."""
        columns = torch.arange(max(lengths), device=device)
        begins, ends = (torch.tensor(numbers, device=device)[:, None] for numbers in (starts, lengths))
        mask = columns < ends  # (B, M)
        follow = starts == [starts[0] + number * len(columns) for number in range(len(starts))]
        is_full = min(lengths) == max(lengths)
        return cls((begins + columns) * mask, None if is_full else mask, starts[0] if is_full and follow else None)

    def take(self, row: Float[Tensor, "S heads D"], *, padding: float | None = None) -> Float[Tensor, "B heads M D"]:
        """Their numbers; this at padding, or anything. Without a copy where they follow each other."""
        if self.start is not None:
            flat = row[self.start : self.start + self.places.numel()]
        else:
            flat = row.index_select(0, self.places.flatten())
        numbers = flat.unflatten(0, self.places.shape)
        if padding is not None and self.mask is not None:
            numbers = numbers.masked_fill(~self.mask[..., None, None], padding)
        return numbers.transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Block:
    """One call: B sequences of queries, each over its own sequence of keys."""

    queries: Sequences
    keys: Sequences
    sight: Sight


@dataclass(frozen=True, eq=False)
class Part:
    """Where the sequences of all blocks have their places in a part of the row.

    Attributes:
        places: of each block (B M) the place of each number in the part, R for padding; None: one after the other.
        size: R.
        is_whole: every token of the part is in a block.
    """

    places: Sequence[Int[Tensor, "BM"]] | None
    size: int
    is_whole: bool

    @classmethod
    def of(cls, blocks: Sequence[Sequences], start: int, size: int, device: torch.device) -> Part:
        """Of the `size` tokens of the row from `start` on."""
        places = [torch.where(_mask(block), block.places - start, size).flatten() for block in blocks]
        flat = torch.cat([*places, torch.empty(0, dtype=torch.long, device=device)])
        in_order = torch.equal(flat, torch.arange(size, device=device))
        return cls(None if in_order else places, size, int((flat < size).sum()) == size)

    def join(self, blocks: Sequence[Float[Tensor, "B heads M D"]], like: Float[Tensor, "S heads D"]) -> Tensor:
        """The numbers of all blocks as those of the part (R, heads, D), 0 for a token that no block has."""
        flat = [numbers.transpose(1, 2).flatten(0, 1) for numbers in blocks]
        if self.places is None and flat:
            return flat[0] if len(flat) == 1 else torch.cat(flat)
        make = like.new_empty if self.is_whole else like.new_zeros
        row = make(self.size + 1, *like.shape[1:])  # the last one is what padding becomes
        for numbers, places in zip(flat, self.places or (), strict=True):
            row.index_copy_(0, places, numbers)
        return row[:-1]


@dataclass(frozen=True, eq=False)
class Span:
    """One kind of attention: its blocks, and the parts of the row that their queries and keys are."""

    blocks: Sequence[Block]
    queries: Part
    keys: Part

    def attend(
        self,
        query: Float[Tensor, "S Hq D"],
        key: Float[Tensor, "S Hk D"],
        value: Float[Tensor, "S Hk Dv"],
        scale: float,
    ) -> tuple[Float[Tensor, "R Hq Dv"], Float[Tensor, "R Hq 1"]]:
        """Output and log-sum-exp of its queries."""
        found = [
            attend(b.queries.take(query), b.keys.take(key), b.keys.take(value), b.sight, scale) for b in self.blocks
        ]
        output, lse = ([each[number] for each in found] for number in (0, 1))
        wide = torch.promote_types(query.dtype, torch.float32)
        likes = query.new_empty(0, query.shape[1], value.shape[2]), query.new_empty(0, query.shape[1], 1, dtype=wide)
        return self.queries.join(output, likes[0]), self.queries.join(lse, likes[1])

    def gradients(
        self,
        grad: Float[Tensor, "S Hq Dv"],
        query: Float[Tensor, "S Hq D"],
        key: Float[Tensor, "S Hk D"],
        value: Float[Tensor, "S Hk Dv"],
        output: Float[Tensor, "S Hq Dv"],
        lse: Float[Tensor, "S Hq 1"],
        scale: float,
    ) -> tuple[Float[Tensor, "R Hq D"], Float[Tensor, "K Hk D"], Float[Tensor, "K Hk Dv"]]:
        """Of its queries, and of its keys and values, for an output and log-sum-exp of which these are a part."""
        found = [
            attend_backward(
                b.queries.take(grad),
                b.queries.take(query),
                b.keys.take(key),
                b.keys.take(value),
                b.queries.take(output),
                b.queries.take(lse, padding=math.inf),  # weights of 0, whatever the scores
                b.sight,
                scale,
            )
            for b in self.blocks
        ]
        of_queries, of_keys, of_values = ([each[number] for each in found] for number in range(3))
        return self.queries.join(of_queries, query), self.keys.join(of_keys, key), self.keys.join(of_values, value)


def make_spans(tree: TokenTree, window: int | None) -> tuple[Span, Span, Span]:
    """Prompts over themselves, completions over their prompts, and completions over themselves.

    Args:
        tree: of P prompts and their completions.
        window: a query sees less than so many tokens back; None: all.
    """
    prompts = _Ranges(tree.prompt_mask.sum(1).tolist(), 0)
    answers = _Ranges(tree.answer_mask.sum(2).flatten().tolist(), prompts.size)
    of_prompts = _Ranges(tree.answer_mask.sum((1, 2)).tolist(), prompts.size)
    kinds = ((prompts, prompts), (of_prompts, prompts), (answers, answers))
    one, two, three = (_span(*kind, tree.position_ids()[0], window) for kind in kinds)
    return one, two, three


def alike(sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """The numbers of the sequences of each block, those in order; no block has one that is empty.

    Args:
        sizes: of each sequence its number of queries, and of keys.
    """
    blocks: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda number: sizes[number], reverse=True):
        if not all(sizes[number]):
            continue
        if blocks and _are_alike([sizes[other] for other in (*blocks[-1], number)]):
            blocks[-1].append(number)
        else:
            blocks.append([number])
    return [sorted(block) for block in blocks]


def _are_alike(sizes: Sequence[tuple[int, ...]]) -> bool:
    return all(max(own) - min(own) <= max(max(own) * MAX_PADDING, FREE_PADDING) for own in zip(*sizes, strict=True))


class _Ranges:
    """Sequences that follow each other in the row.

    Attributes:
        lengths: of each.
        start: where the first one begins.
        size: of all.
    """

    def __init__(self, lengths: list[int], start: int) -> None:
        self.lengths, self.start, self.size = lengths, start, sum(lengths)
        self._starts = [start, *(start + end for end in accumulate(lengths))]

    def pick(self, numbers: Sequence[int], device: torch.device) -> Sequences:
        """Some of them."""
        return Sequences.of([self._starts[n] for n in numbers], [self.lengths[n] for n in numbers], device)


def _span(queries: _Ranges, keys: _Ranges, position: Int[Tensor, "S"], window: int | None) -> Span:
    device = position.device
    is_near = window is None or int(position.max()) < window
    blocks: list[Block] = []
    for numbers in alike(list(zip(queries.lengths, keys.lengths, strict=True))):
        own = queries.pick(numbers, device)
        seen = own if keys is queries else keys.pick(numbers, device)
        blocks.append(Block(own, seen, _sight(own, seen, position, None if is_near else window)))
    parts = (
        Part.of([block.queries for block in blocks], queries.start, queries.size, device),
        Part.of([block.keys for block in blocks], keys.start, keys.size, device),
    )
    return Span(blocks, *parts)


def _sight(queries: Sequences, keys: Sequences, position: Int[Tensor, "S"], window: int | None) -> Sight:
    """Of tokens that see those before them; padding comes after, so that only a prompt's has to be hidden."""
    if window is None and queries is keys:
        return Sight(later=False)
    padding = None if keys.mask is None else ~keys.mask[:, None, None, :]
    if window is None:
        return Sight(hidden=padding)
    distance = position[queries.places][:, None, :, None] - position[keys.places][:, None, None, :]  # (B, 1, M, N)
    hidden = (distance < 0) | (distance >= window)
    return Sight(hidden=hidden if padding is None else hidden | padding)


def _mask(sequences: Sequences) -> Bool[Tensor, "B M"]:
    if sequences.mask is None:
        return torch.ones_like(sequences.places, dtype=torch.bool)
    return sequences.mask
