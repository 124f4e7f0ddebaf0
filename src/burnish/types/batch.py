"""Batches: a set of prompts, and the completions that point at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from burnish.types.joining import chained, likeness, stacked, starts

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from burnish.types.rollout import Completion

Parcel = TypeVar("Parcel", bound="TokenBatch")

PAIR_UNITS = ("pair", "chosen_token", "prompt")


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatch:
    """Prompts, and completions that point at them.

    Attributes:
        prompt_ids: (P, L) token ids, left-padded.
        prompt_mask: (P, L) a token is there.
        completion_ids: (N, T) token ids, right-padded.
        completion_mask: (N, T) a token is there.
        loss_mask: (N, T) the token is trained; a subset of `completion_mask`.
        prompt_index: (N,) each row's prompt, which is also its group.
        row_id: (N,) the row of the data set that it came from: named by every error and guard.
        columns: per-row numbers (N,): `label`, `score`, `weight`, `source`, `truncated`; of drawn answers `sample`,
            which of the answers to its prompt a row is, from 0.
        turn_index: (N, T) the turn that a token belongs to, or None.
        extra: one mapping of opaque model inputs per prompt (images), or empty.
        is_filler: a copy that keeps this rank in step with the others; it counts for nothing.

    Example: one prompt of two tokens with two completions, of two and one tokens:
        prompt_ids [[5, 6]], completion_ids [[7, 2], [8, 0]], completion_mask [[1, 1], [1, 0]],
        prompt_index [0, 0], row_id [17, 17].
    """

    prompt_ids: Int[Tensor, "P L"]
    prompt_mask: Bool[Tensor, "P L"]
    completion_ids: Int[Tensor, "N T"]
    completion_mask: Bool[Tensor, "N T"]
    loss_mask: Bool[Tensor, "N T"]
    prompt_index: Int[Tensor, "N"]
    row_id: Int[Tensor, "N"]
    columns: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    turn_index: Int[Tensor, "N T"] | None = None
    extra: tuple[Mapping[str, Any], ...] = ()
    is_filler: bool = False

    # Fields with one entry a row, of T columns or one; a subclass adds its own.
    row_fields: ClassVar[tuple[str, ...]] = ("completion_ids", "completion_mask", "loss_mask", "turn_index")

    def __len__(self) -> int:
        return int(self.completion_ids.shape[0])

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in fields(self))

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to(self: Parcel, device: torch.device | str, *, non_blocking: bool = False) -> Parcel:
        """The same parcel with every tensor on `device`."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Parcel) -> Parcel:
        """The same parcel in page-locked memory, as torch's DataLoader asks for it."""
        return self.mapped(lambda tensor: tensor.pin_memory())

    def mapped(self: Parcel, function: Callable[[Tensor], Tensor]) -> Parcel:
        """The same parcel with a function of every tensor."""
        return replace(self, **{f.name: _map_tensors(getattr(self, f.name), function) for f in fields(self)})

    def take(self: Parcel, rows: Int[Tensor, "K"]) -> Parcel:
        """The parcel of some of its rows and the prompts that they need, without the columns that are padding alone."""
        prompts = torch.zeros_like(self.prompt_mask[:, 0]).index_fill(0, self.prompt_index[rows], True).nonzero()[:, 0]
        start = self.prompt_ids.shape[1] - int(self.prompt_mask[prompts].sum(1).max())
        width = max(int(self.completion_mask[rows].sum(1).max()), 1)
        of_rows = {name: self[name] for name in self.row_fields}
        return replace(
            self,
            prompt_ids=self.prompt_ids[prompts, start:],
            prompt_mask=self.prompt_mask[prompts, start:],
            prompt_index=torch.searchsorted(prompts, self.prompt_index[rows]),
            row_id=self.row_id[rows],
            columns={name: values[rows] for name, values in self.columns.items()},
            extra=tuple(self.extra[int(prompts[p])] for p in range(len(prompts))) if self.extra else (),
            **{name: values[rows, :width] for name, values in of_rows.items() if values is not None},
        )

    @property
    def kind(self) -> tuple[Any, ...]:
        """What is equal in parcels that `joined` takes: the class, which fields and columns there are, and numbers."""
        values = (getattr(self, f.name) for f in fields(self))
        return type(self), *(v.kind if isinstance(v, TokenBatch) else likeness(v) for v in values)

    def joined(self: Parcel, others: Sequence[TokenBatch]) -> Parcel:
        """One parcel of its own rows and those of others of its `kind`, behind them, with prompts of their own."""
        parcels: Sequence[TokenBatch] = (self, *others)
        begins = starts([len(parcel.prompt_ids) for parcel in parcels])
        of_rows = {name: [parcel[name] for parcel in parcels] for name in self.row_fields if self[name] is not None}
        return replace(
            self,
            prompt_ids=stacked([parcel.prompt_ids for parcel in parcels], left=True),
            prompt_mask=stacked([parcel.prompt_mask for parcel in parcels], left=True),
            prompt_index=torch.cat([p.prompt_index + begin for p, begin in zip(parcels, begins, strict=True)]),
            row_id=torch.cat([parcel.row_id for parcel in parcels]),
            columns=chained([parcel.columns for parcel in parcels]),
            extra=tuple(mapping for parcel in parcels for mapping in parcel.extra),
            **{name: stacked(values) for name, values in of_rows.items()},
        )

    def with_answers(self: Parcel, rows: Int[Tensor, "K"], answers: Sequence[Completion]) -> Parcel:
        """The parcel with other answers (K), of one turn each, in some of its rows."""
        others = torch.ones_like(self.row_id, dtype=torch.bool).index_fill(0, rows, False)  # (N,)
        longest = torch.where(others, self.completion_mask.sum(1), 0).max()
        width = max(1, int(longest), *map(len, answers))
        trained = [answer.loss_mask for answer in answers]
        columns = dict(self.columns)
        if "truncated" in columns:
            cut = columns["truncated"].new_tensor([float(answer.is_truncated) for answer in answers])
            columns["truncated"] = columns["truncated"].index_copy(0, rows, cut)
        of_rows = {
            "completion_ids": [answer.token_ids for answer in answers],
            "completion_mask": [torch.ones_like(mask) for mask in trained],
            "loss_mask": trained,
            **({} if self.turn_index is None else {"turn_index": [torch.zeros_like(mask) for mask in trained]}),
        }
        placed = {name: _placed(self[name], rows, new, width) for name, new in of_rows.items()}
        return replace(self, columns=columns, **placed)

    @property
    def num_input_tokens(self) -> Int[Tensor, ""]:
        """Prompt and completion tokens, a prompt counted once for each of its rows."""
        prompt_lengths = self.prompt_mask.sum(1)[self.prompt_index]  # (N,)
        return prompt_lengths.sum() + self.completion_mask.sum()

    def unit_weights(self, per: str) -> Tensor:
        """The weight of each unit of the parcel, in the shape of a loss over that unit.

        Returns:
            `row`: (N,), `token`: (N, T), zero outside `loss_mask`.

        Raises:
            ValueError: the parcel has no such unit.
        """
        rows = self.columns.get("weight", torch.ones(len(self), device=self.completion_ids.device))  # (N,)
        if per == "row":
            return rows
        if per == "token":
            return self.loss_mask * rows[:, None]
        raise ValueError(f"{type(self).__name__} has no unit {per!r}; it has: {', '.join(self.units)}")

    def unit_rows(self, per: str) -> Int[Tensor, "N"]:
        """The row of the data set of each row of a unit."""
        del per
        return self.row_id

    @property
    def units(self) -> tuple[str, ...]:
        """The units that a loss over this parcel may be averaged over."""
        return ("row", "token")

    def counts(self) -> dict[str, Float[Tensor, ""]]:
        """The summed weight of every unit: what a sum of losses over that unit is divided by."""
        keep = 0.0 if self.is_filler else 1.0
        return {per: self._count(per) * keep for per in self.units}

    def _count(self, per: str) -> Tensor:
        return wide(self.unit_weights(per)).sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferenceBatch(TokenBatch):
    """Pairs of rows, of which the first is preferred.

    Attributes:
        pairs: (M, 2) indices of the chosen and the rejected row; a row may be in several pairs.
        margin: (M,) how much better the chosen row is: the data's margin, else the difference of scores, or None.
        weight: (M,) the weight of a pair in the average, or None for one each.
        ref_logps: (N,) the reference's summed log-probs from the data set, or None.
        ref_token_logps: (N, T) the same per token, or None.
        coupled: for each loss that couples rows, (M, 3): its value at this parcel's pairs, and its derivatives by
            their chosen and rejected log-probs, over all pairs of the step. Empty until the step is prepared.

    Example: one prompt with its two answers has pairs [[0, 1]].
    """

    pairs: Int[Tensor, "M 2"]
    margin: Float[Tensor, "M"] | None = None
    weight: Float[Tensor, "M"] | None = None
    ref_logps: Float[Tensor, "N"] | None = None
    ref_token_logps: Float[Tensor, "N T"] | None = None
    coupled: Mapping[str, Float[Tensor, "M 3"]] = field(default_factory=dict[str, Tensor])

    row_fields: ClassVar[tuple[str, ...]] = (*TokenBatch.row_fields, "ref_token_logps")

    def take(self, rows: Int[Tensor, "K"]) -> PreferenceBatch:
        """As in `TokenBatch`, with the pairs whose rows are both among them."""
        place = torch.full_like(self.row_id, -1).index_copy(0, rows, torch.arange(len(rows), device=rows.device))
        kept = (place[self.pairs] >= 0).all(1)  # (M,)
        return replace(
            super().take(rows),
            pairs=place[self.pairs[kept]],
            margin=None if self.margin is None else self.margin[kept],
            weight=None if self.weight is None else self.weight[kept],
            ref_logps=None if self.ref_logps is None else self.ref_logps[rows],
            coupled={name: values[kept] for name, values in self.coupled.items()},
        )

    def joined(self, others: Sequence[TokenBatch]) -> PreferenceBatch:
        """As in `TokenBatch`, with the pairs of all."""
        parcels: list[Any] = [self, *others]  # all of its kind
        begins = starts([len(parcel) for parcel in parcels])
        optional = {name: [parcel[name] for parcel in parcels] for name in ("margin", "weight", "ref_logps")}
        return replace(
            super().joined(others),
            pairs=torch.cat([parcel.pairs + begin for parcel, begin in zip(parcels, begins, strict=True)]),
            coupled=chained([parcel.coupled for parcel in parcels]),
            **{name: torch.cat(values) for name, values in optional.items() if values[0] is not None},
        )

    def with_answers(self, rows: Int[Tensor, "K"], answers: Sequence[Completion]) -> PreferenceBatch:
        """As in `TokenBatch`; what the data set says of the reference's log-probs is of other answers, and goes."""
        return replace(super().with_answers(rows, answers), ref_logps=None, ref_token_logps=None)

    @property
    def units(self) -> tuple[str, ...]:
        """`pair`; `chosen_token`, the trained tokens of the preferred rows; `prompt`; `row`; `token`."""
        return (*PAIR_UNITS, *super().units)

    def unit_weights(self, per: str) -> Tensor:
        """As in `TokenBatch`; `PAIR_UNITS`: (M,), a loss of pairs, or parts of a loss that is a sum over more."""
        if per not in PAIR_UNITS:
            return super().unit_weights(per)
        return torch.ones(len(self.pairs), device=self.pairs.device) if self.weight is None else self.weight

    def _count(self, per: str) -> Tensor:
        weights = wide(self.unit_weights("pair"))  # (M,)
        if per == "chosen_token":
            return (weights * self.loss_mask.sum(1)[self.pairs[:, 0]]).sum()
        if per == "prompt":  # a prompt has the mean weight of its pairs
            prompts = self.prompt_index[self.pairs[:, 0]]  # (M,)
            num_pairs = torch.zeros(len(self.prompt_ids), device=prompts.device, dtype=weights.dtype)
            return (weights / num_pairs.index_add(0, prompts, torch.ones_like(weights))[prompts]).sum()
        return super()._count(per)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 where the device has no float64 (MPS): for sums of many numbers."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _placed(values: Tensor, places: Int[Tensor, "K"], rows: Sequence[Tensor], width: int) -> Tensor:
    """(N, T) values, `width` columns of them, with rows of other lengths in some places and 0 behind these."""
    placed = values.new_zeros(len(values), width)
    kept = min(width, values.shape[1])
    placed[:, :kept] = values[:, :kept]
    for place, row in zip(places, rows, strict=True):
        placed[int(place)] = 0
        placed[int(place), : len(row)] = row.to(placed)
    return placed


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, tuple):
        return tuple(_map_tensors(item, function) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return value.mapped(function) if isinstance(value, TokenBatch) else value
