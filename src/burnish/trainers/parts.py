"""An optimizer step in parts under a token budget: whole groups, so that a shared prompt stays shared.

The loss of a part is divided by the counts of the whole step, so neither how a micro-batch is cut nor which of them
are put together changes a gradient. It bounds the memory of activations, keeps rows of one length together, and spares
small micro-batches what every forward and backward costs besides. Parts are as even as their number allows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Generic

import torch

from burnish.models import footprint
from burnish.types import MixedBatch
from burnish.types.batch import Parcel

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from burnish.trainers.config import PolicyConfig
    from burnish.types import TokenBatch


def token_budget(options: PolicyConfig) -> int | None:
    """The most tokens of a part, None for no bound."""
    on_cpu, low_precision = options.device.type == "cpu", options.bf16 or options.fp16
    return footprint.token_budget(options.token_budget, on_cpu=on_cpu, low_precision=low_precision)


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


class Together(Generic[Parcel]):
    """Micro-batches of a step that follow one another and fit one part: they are trained on when the last one comes.

    Attributes:
        waits: False: each is trained on by itself, by a forward of its own, for who looks at one, and for debugging.
    """

    def __init__(self) -> None:
        self.waits = True
        self._waiting: list[Parcel] = []
        self._wanted: deque[int] = deque()

    def plan(self, parcels: Sequence[Parcel], budget: int | None) -> None:
        """Begin a step of these micro-batches; what waits of one that was broken off is forgotten."""
        self._waiting, self._wanted = [], deque(neighbours(parcels, budget if self.waits else None))

    def add(self, parcel: Parcel) -> Parcel | None:
        """The micro-batch that is trained on now: this one with those that waited; None: it waits for the next one."""
        self._waiting.append(parcel)
        if self._wanted and len(self._waiting) < self._wanted[0]:
            return None
        if self._wanted:
            self._wanted.popleft()
        whole, self._waiting = joined(self._waiting), []
        return whole


def neighbours(parcels: Sequence[Parcel], budget: int | None) -> list[int]:
    """How many micro-batches, one after the other, are put together each time: alike, and within the budget.

    >>> neighbours([], 1024)
    []
    """
    if budget is None:
        return [1] * len(parcels)
    runs: list[int] = []
    for _, alike in groupby(parcels, key=lambda parcel: parcel.kind):
        sizes = [_num_tokens(parcel) for parcel in alike]
        ends = _fill(sizes, _least_budget(sizes, budget))
        runs += [end - start for start, end in pairwise([0, *ends])]
    return runs


def joined(parcels: Sequence[Parcel]) -> Parcel:
    """Several micro-batches as one; one is what it was."""
    first, *others = parcels
    return first.joined(others) if others else first


def _num_tokens(batch: TokenBatch) -> int:
    supervised = batch.supervised if isinstance(batch, MixedBatch) else None
    own = int(batch.prompt_mask.sum() + batch.completion_mask.sum())
    return own if supervised is None else own + _num_tokens(supervised)


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
