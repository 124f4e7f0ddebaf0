"""Attention over a `TokenTree` through torch's flex attention: compiled on an accelerator, without a matrix of scores.

The row of the tree is one sequence, and a mask says which tokens see each other: those of one prompt, in one
completion of it, causally. Blocks of 128 x 128 that nobody sees are not computed, so the cost is that of the tree.
On a CPU flex attention has no gradient and computes all scores, so that `models.attention` is the one to take there.

Source: FlexAttention (2412.05496).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from burnish.models.attention import register_over_trees

if TYPE_CHECKING:
    from jaxtyping import Int

    from burnish.models.tree import TokenTree

NAME = "burnish_flex_tree"
BLOCK = 128
MASK_BUDGET = 1 << 26  # places of the mask that are looked at together, 64 MB
# Of the two kernels, the one for few queries takes only groups of heads whose size is a power of two.
KERNEL = {"FORCE_USE_FLEX_ATTENTION": True}

Sees = Callable[[Any, Any, Tensor, Tensor], Tensor]


def _attend(query: Tensor, key: Tensor, value: Tensor, tree: TokenTree, window: int | None, scale: float) -> Tensor:
    """Under the mask of the tree, which all layers with one window share."""
    if window not in tree.masks:
        tree.masks[window] = block_mask(tree, window)
    kernel: Any = _compiled() if query.device.type != "cpu" else flex_attention
    output = kernel(
        query,
        key,
        value,
        block_mask=tree.masks[window],
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=KERNEL,
    )
    return output.transpose(1, 2).contiguous()


register_over_trees(NAME, _attend)


def who_sees(tree: TokenTree, window: int | None) -> Sees:
    """Whether the token in place `q` of the row sees the one in place `k`; the other two arguments are not read.

    It does if both are of one prompt, `k` is of the prompt itself or of the same completion, and stands at most as far
    as `q` and less than `window` before it.
    """
    prompt, answer = tree.owners()
    position = tree.position_ids()[0]

    def sees(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        del b, h
        is_of_own = (prompt[q] == prompt[k]) & ((answer[k] < 0) | (answer[q] == answer[k]))
        return is_of_own & (position[k] <= position[q])

    if window is None:
        return sees
    width = window

    def sees_near(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        return sees(b, h, q, k) & (position[q] - position[k] < width)

    return sees_near


def block_mask(tree: TokenTree, window: int | None) -> BlockMask:
    """The mask of `who_sees`, made without all of its S x S places at once."""
    sees, size = who_sees(tree, window), len(tree.source)
    num_blocks = -(-size // BLOCK)
    places = torch.arange(size, device=tree.source.device)
    counts: list[Tensor] = []
    for rows in places.split(BLOCK * max(1, MASK_BUDGET // (BLOCK * size))):
        seen = sees(None, None, rows[:, None], places[None])  # (rows, S)
        height = -(-len(rows) // BLOCK)
        padding = (0, num_blocks * BLOCK - size, 0, height * BLOCK - len(rows))
        padded = torch.nn.functional.pad(seen, padding).view(height, BLOCK, num_blocks, BLOCK)
        counts.append(padded.sum((1, 3)))
    count = torch.cat(counts)  # (blocks, blocks) places of each block that are seen
    is_full = count == BLOCK * BLOCK
    return BlockMask.from_kv_blocks(
        *_listed((count > 0) & ~is_full),
        *_listed(is_full),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(size, size),
    )


def _listed(blocks: Tensor) -> tuple[Int[Tensor, "1 1 B"], Int[Tensor, "1 1 B B"]]:
    """How many blocks of keys each block of queries looks at, and their numbers, followed by the others."""
    numbers = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], numbers.int()[None, None]


@cache
def _compiled() -> Any:
    """The kernel for rows of any length; compiled at its first call, once for each set of heads and kinds of mask."""
    return torch.compile(flex_attention, dynamic=True)
