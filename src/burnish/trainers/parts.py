"""A micro-batch in parts under a token budget: whole groups, so that a shared prompt stays shared.

The loss of a part is divided by the counts of the whole step, so how a micro-batch is cut changes no gradient. It
bounds the memory of activations, and keeps rows of one length together. Parts are as even as their number allows.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from burnish.trainers.config import PolicyConfig
    from burnish.types import TokenBatch

# Float32 products are at their best speed with fewer, and these fit anywhere. In low precision products are cheap, and
# what every part costs besides (gradients of all weights, cast and added) is not.
CPU_TOKENS, CPU_TOKENS_LOW_PRECISION = 1024, 4096


def token_budget(options: PolicyConfig) -> int | None:
    """The most tokens of a part: what was asked for, 0 for no bound; unset, on a CPU, what its precision takes."""
    if options.token_budget is not None:
        return options.token_budget or None
    if options.device.type != "cpu":
        return None
    return CPU_TOKENS_LOW_PRECISION if options.bf16 or options.fp16 else CPU_TOKENS


def cut(batch: TokenBatch, budget: int | None) -> list[Int[Tensor, "K"]]:
    """The rows of each part, long groups first; a group that is over the budget alone is a part alone.

    Args:
        batch: rows of P prompts.
        budget: most tokens of a part, a prompt counted once; None: one part, in the order of the rows.
    """
    everything = torch.arange(len(batch), device=batch.row_id.device)
    if budget is None:
        return [everything]
    of_rows = batch.completion_mask.sum(1)  # (N,)
    lengths = batch.prompt_mask.sum(1).index_add(0, batch.prompt_index, of_rows)  # (P,)
    if int(lengths.sum()) <= budget:
        return [everything]
    order = lengths.argsort(descending=True, stable=True).tolist()
    ordered = lengths[order].tolist()
    ends = _fill(ordered, _least_budget(ordered, budget))
    parts = [order[start:end] for start, end in pairwise([0, *ends])]
    rows = [torch.isin(batch.prompt_index, torch.tensor(part, device=everything.device)) for part in parts]
    return [everything[mine] for mine in rows if bool(mine.any())]


def _least_budget(lengths: list[int], budget: int) -> int:
    """With which there are as many parts as with the one that is given."""
    fewest = len(_fill(lengths, budget))
    return bisect_left(range(budget), True, key=lambda less: len(_fill(lengths, less)) <= fewest)


def _fill(lengths: list[int], budget: int) -> list[int]:
    """Where each part ends that takes as many of the lengths as the budget allows, one after the other."""
    ends, used = [], 0
    for number, length in enumerate(lengths):
        if used and used + length > budget:
            ends.append(number)
            used = 0
        used += length
    return [*ends, len(lengths)]
