"""Several sources in one data set: how many rows of each an epoch takes, and in which order.

Without weights an epoch takes every row of every source once, in the one permutation that a single source would have.
With weights it is as long, but source s fills its share weight_s / sum of weights of it, to the nearest row. Each
source is an endless sequence of passes, a permutation of all its rows each; an epoch goes on where the one before
stopped. So no row is taken a third time before every row of its source was taken twice, and what one epoch leaves out
comes first in the next. The order depends on (seed, epoch) alone: it is the same on every rank, and after a resume.

Example: sources of 6 and 2 rows with weights 1 and 1: an epoch has 8 rows, 4 of the first and 4 of the second; the
first is through after one and a half epochs, and the second is taken twice in each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from datasets import Dataset

from burnish.data.errors import DataError
from burnish.data.images import DIGEST_COLUMN
from burnish.data.numbers import TIE_COLUMN
from burnish.data.parts import IMAGE_COLUMNS
from burnish.data.sampler import mix_seeds, permutation
from burnish.data.schema import KWISE_IDS, SOURCE_COLUMN
from burnish.data.shares import apportion, read_weights

# What a row has that does not say anything of these, where rows of another source do.
NEUTRAL: Mapping[str, Any] = {"weight": 1.0, TIE_COLUMN: False, DIGEST_COLUMN: [], **dict.fromkeys(IMAGE_COLUMNS)}


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What was mixed, and the order of its epochs.

    Attributes:
        names: the sources; the column `source` of a row is its source's place here.
        sizes: rows of each.
        weights: how much of an epoch each is, in relation to the others; None: every row once.
        left_out: columns that some sources do not have and that are therefore read of none, by source.
        first_ids: what was added to the `row_id` of each source, so that no two rows share one.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None
    left_out: Mapping[str, Sequence[str]]
    first_ids: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of an epoch: as many as the sources have together."""
        return sum(self.sizes)

    @property
    def quotas(self) -> tuple[int, ...]:
        """Rows of each source in an epoch."""
        return self.sizes if self.weights is None else apportion(self.num_rows, self.weights)

    def order(self, seed: int, epoch: int) -> list[int]:
        """The rows of an epoch, as indices into the sources one after the other."""
        if self.weights is None:
            return permutation(self.num_rows, seed, epoch)
        quotas, starts = self.quotas, [sum(self.sizes[:source]) for source in range(len(self.sizes))]
        drawn = [
            [start + index for index in _draws(size, quota, mix_seeds(seed, source + 1), epoch)]
            for source, (start, size, quota) in enumerate(zip(starts, self.sizes, quotas, strict=True))
        ]
        in_turn = [index for of_source in drawn for index in of_source]
        return [in_turn[place] for place in permutation(self.num_rows, seed, epoch)]

    def lines(self) -> list[str]:
        """For a person: what an epoch takes, repeats and leaves out of each source."""
        lines = [f"mixture: an epoch takes {self.num_rows} rows of {len(self.names)} sources"]
        for name, size, quota, first in zip(self.names, self.sizes, self.quotas, self.first_ids, strict=True):
            numbered = f"; its rows are numbered from {first}" if first else ""
            share = f"{quota / self.num_rows:.1%} of it"
            if quota < size:
                taken = f"{quota} of {size} rows, {share}; the other {size - quota} are left to the next epochs"
            elif quota > size:
                taken = f"{size} rows {quota / size:.3g} times, {share}: {quota - size} repetitions"
            else:
                taken = f"{size} rows once, {share}"
            lines.append(f"  {name}: {taken}{numbered}")
        lines += [
            f"  not read of {name}, since not every source has it: {', '.join(columns)}"
            for name, columns in self.left_out.items()
            if columns
        ]
        return lines

    def fingerprint(self, of_sources: Sequence[str]) -> str:
        """Hash of names, weights and the sources' own fingerprints: of all that is trained on, and its order."""
        content = repr((self.names, self.sizes, self.weights, [*self.left_out.items()], [*of_sources]))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def mix(prepared: Mapping[str, Dataset], weights: Any = None) -> tuple[Dataset, Mixture]:
    """Prepared rows of several sources as one data set, with the column `source`.

    A row without `weight` counts 1 where those of another source have one, and one without `tie` is none. Other numbers
    that not every source has are read of none.

    Args:
        prepared: rows as `prepare_preferences` returns them, by source.
        weights: as `read_weights` takes them.

    Raises:
        DataError: rows of pairs and of several completions, or images in columns of different types.
        ValueError: weights that are not allowed.
    """
    names = tuple(prepared)
    _refuse_two_kinds(prepared)
    shared = [column for column in _columns(prepared) if _is_shared(column, prepared)]
    left_out = {name: [c for c in rows.column_names if c not in shared] for name, rows in prepared.items()}
    features = _features(prepared, shared)
    first_ids, aligned = [0], []
    for source, rows in enumerate(prepared.values()):
        ids = [int(row_id) + first_ids[-1] for row_id in rows["row_id"]]
        first_ids.append(max(ids) + 1)
        aligned.append(_align(rows, shared, features, ids=ids, source=source))
    mixture = Mixture(
        names=names,
        sizes=tuple(map(len, aligned)),
        weights=read_weights(weights, names),
        left_out=left_out,
        first_ids=tuple(first_ids[:-1]),
    )
    for name, weight, quota in zip(names, mixture.weights or mixture.sizes, mixture.quotas, strict=True):
        if not quota:
            raise ValueError(
                f"dataset_weights: {weight:g} for {name!r} gives it none of the {mixture.num_rows} rows of an epoch: "
                "give it more, or remove it"
            )
    return datasets.concatenate_datasets(aligned), mixture


def _refuse_two_kinds(prepared: Mapping[str, Dataset]) -> None:
    kwise = [name for name, rows in prepared.items() if KWISE_IDS in rows.column_names]
    if kwise and len(kwise) < len(prepared):
        pairs = [name for name in prepared if name not in kwise]
        raise DataError(
            f"{', '.join(kwise)}: rows of several completions; {', '.join(pairs)}: rows of chosen and rejected. A "
            "mixture has one kind: give pairs as completions with scores [1, 0]."
        )


def _columns(prepared: Mapping[str, Dataset]) -> list[str]:
    return list(dict.fromkeys(column for rows in prepared.values() for column in rows.column_names))


def _is_shared(column: str, prepared: Mapping[str, Dataset]) -> bool:
    """Every source has it, or what it means where it is missing is known. The mixture numbers the sources itself."""
    everywhere = all(column in rows.column_names for rows in prepared.values())
    return column != SOURCE_COLUMN and (everywhere or column in NEUTRAL)


def _features(prepared: Mapping[str, Dataset], columns: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, rows in prepared.items():
        for column in rows.column_names:
            feature = found.setdefault(column, rows.features[column])
            if column in columns and feature != rows.features[column]:
                raise DataError(
                    f"the column {column!r} of {name} is {rows.features[column]}, that of an earlier source {feature}: "
                    "give both one type, as with dataset.cast_column"
                )
    return {column: found[column] for column in columns}


def _align(
    rows: Dataset, columns: Sequence[str], features: Mapping[str, Any], *, ids: Sequence[int], source: int
) -> Dataset:
    """The rows with these columns in this order, missing ones filled, numbered anew."""
    missing = {column: [NEUTRAL[column]] * len(rows) for column in columns if column not in rows.column_names}
    own = rows.select_columns([column for column in columns if column not in missing and column != "row_id"])
    added = {"row_id": ids, **missing, SOURCE_COLUMN: [source] * len(rows)}
    types = {**features, SOURCE_COLUMN: datasets.Value("int64")}
    extra = Dataset.from_dict(added, features=datasets.Features({name: types[name] for name in added}))
    whole = datasets.concatenate_datasets([own, extra], axis=1)
    return whole.select_columns([*columns, SOURCE_COLUMN])


def _draws(size: int, count: int, seed: int, epoch: int) -> list[int]:
    """`count` rows of a source of `size`: those of epoch `epoch` in its endless sequence of passes."""
    start = epoch * count
    passes = range(start // size, -(-(start + count) // size))
    rows = [row for number in passes for row in permutation(size, seed, number)]
    offset = start - passes.start * size
    return rows[offset : offset + count]
