"""Which rank trains on which rows, when: no row twice, the same number of micro-batches on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from burnish.types import TokenBatch

FILLER = -1


class RankBatchSampler(Sampler[list[int]]):
    """This rank's micro-batches, as lists of row indices.

    The rows of an epoch stand in one order, the same on every rank: a permutation drawn from (seed, epoch),
    or 0, 1, 2, … without `shuffle`. Each round takes the next `batch_size * num_replicas` rows and deals them
    contiguously: rank r gets the r-th `batch_size` of them. Rows in the k-th optimizer step thus depend only
    on batch_size * num_replicas * accumulation steps. The last round may be short; a rank left without rows
    yields `[FILLER]`, so that every rank takes part in every step.

    Args:
        num_rows: rows of the data set, at least 1.
        batch_size: rows of a micro-batch.
        num_replicas: ranks that share the rows.
        rank: which of them this is.
        shuffle: another order in every epoch.
        seed: of the order.
        drop_last: leave out the last round if it is short.
        order: (seed, epoch) -> `num_rows` row indices, in place of the permutation; the same on every rank.

    Attributes:
        num_dropped: rows of each epoch left out by `drop_last`.

    Raises:
        ValueError: a size or a rank out of range, or `drop_last` that leaves no row.

    Example: 5 rows, batch_size 2, two ranks, no shuffle: rank 0 [0, 1], [4]; rank 1 [2, 3], [FILLER].
    """

    def __init__(
        self,
        num_rows: int,
        *,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        order: Callable[[int, int], list[int]] | None = None,
    ) -> None:
        for name, value in (
            ("num_rows", num_rows),
            ("batch_size", batch_size),
            ("num_replicas", num_replicas),
        ):
            if value < 1:
                raise ValueError(f"{name}={value} is not allowed: 1 or more")
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank={rank} is not allowed: 0 to {num_replicas - 1}, as num_replicas={num_replicas}")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.num_replicas = num_replicas
        self.rank = rank
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self._draw = order or partial(permutation, num_rows)
        self.num_dropped = num_rows % self.round_size if drop_last else 0
        if self.num_dropped == num_rows:
            raise ValueError(
                f"drop_last leaves none of {num_rows} rows: a round takes {self.round_size} "
                f"({batch_size} on each of {num_replicas} ranks). Use smaller batches, or drop_last=False."
            )

    @property
    def round_size(self) -> int:
        """Rows of a round over all ranks."""
        return self.batch_size * self.num_replicas

    def __len__(self) -> int:
        return math.ceil((self.num_rows - self.num_dropped) / self.round_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for number in range(len(self)):
            start = number * self.round_size + self.rank * self.batch_size
            yield order[start : start + self.batch_size] or [FILLER]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration uses."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """The rows of this epoch over all ranks, without those dropped."""
        if not self.shuffle:
            return list(range(self.num_rows - self.num_dropped))
        return self._draw(self.seed, self.epoch)[: self.num_rows - self.num_dropped]


class RowDataset(TorchDataset[dict[str, Any]]):
    """Prepared rows by index; `FILLER` is the first row with `is_filler: True`.

    Args:
        dataset: prepared rows, at least one.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset.with_format(None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a micro-batch in one read."""
        columns = self.dataset[[0 if index == FILLER else index for index in indices]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [
            {**row, "is_filler": True} if index == FILLER else row for index, row in zip(indices, rows, strict=True)
        ]


class BatchLoader(DataLoader[dict[str, Any]]):
    """Parcels of this rank, in the sampler's order.

    Its own random generator keeps the global one untouched, so that starting an epoch, or resuming in its
    middle, changes no draw of the training.

    Args:
        dataset: prepared rows.
        sampler: this rank's micro-batches.
        collator: rows -> parcel.
        num_workers: processes that collate, or 0 for this one.
        pin_memory: copy parcels to page-locked memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: RankBatchSampler,
        collator: Callable[[Sequence[dict[str, Any]]], TokenBatch],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if sampler.num_rows != len(dataset):
            raise ValueError(f"the sampler deals {sampler.num_rows} rows, but the data set has {len(dataset)}")
        super().__init__(
            RowDataset(dataset),
            batch_sampler=sampler,
            collate_fn=collator,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self._rank_sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration uses."""
        self._rank_sampler.set_epoch(epoch)


def permutation(num_rows: int, seed: int, epoch: int) -> list[int]:
    """0 to `num_rows` - 1 in an order that (seed, epoch) gives, the same on every machine."""
    generator = torch.Generator().manual_seed(mix_seeds(seed, epoch))
    return torch.randperm(num_rows, generator=generator).tolist()


def mix_seeds(seed: int, epoch: int) -> int:
    """One seed from two, so that (seed, epoch + 1) and (seed + 1, epoch) differ."""
    return (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9) % 2**63
