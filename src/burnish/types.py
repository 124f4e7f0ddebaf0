"""Every parcel that crosses a wall between rooms, with its shapes and one worked example each.

Legend for the whole library: **P** prompts, **N** completions (rows), **M** pairs, **L** prompt tokens,
**T** completion tokens, **V** vocabulary, **H** hidden size.

A batch is a set of prompts and the completions that point at them: a preference pair is one prompt with two
completions. No parcel is ever changed; a room returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

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
        columns: per-row numbers (N,): `label`, `score`, `weight`, `source`, `truncated`.
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

    def __len__(self) -> int:
        return int(self.completion_ids.shape[0])

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in fields(self))

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def to(self: Parcel, device: torch.device | str, *, non_blocking: bool = False) -> Parcel:
        """The same parcel with every tensor on `device`."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: Parcel) -> Parcel:
        """The same parcel in page-locked memory, as torch's DataLoader asks for it."""
        return self._apply(lambda tensor: tensor.pin_memory())

    def _apply(self: Parcel, function: Callable[[Tensor], Tensor]) -> Parcel:
        return replace(self, **{f.name: _map_tensors(getattr(self, f.name), function) for f in fields(self)})

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


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStats:
    """What one forward says about each completion token, aligned with `TokenBatch.completion_ids`.

    Attributes:
        logps: (N, T) log-prob in nats of each trained token, ≤ 0; exactly 0 outside `mask`.
        mask: (N, T) the batch's `loss_mask`.
        entropy: (N, T) entropy of the next-token distribution in nats, ≥ 0, or None if not asked for.
        hidden: (N, T+1, H) the state before each token, and after the last, or None if not asked for.
        extra: what a loss or metric asked for by name, (N, T) each: `top1` (1 where the token is the most
            likely one), `mean_logit`, `sum_p2` (sum of squared probabilities), `divergence` (KL(teacher || model)
            of the next-token distributions in nats, with gradient).
        aux_loss: () the load-balancing loss of a mixture-of-experts model, or None.

    Example: a completion of two tokens with probabilities 0.5 and 0.25, padded to three:
        logps [[-0.693, -1.386, 0.0]], mask [[True, True, False]], sequence_sum() [-2.079].
    """

    logps: Float[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    entropy: Float[Tensor, "N T"] | None = None
    hidden: Float[Tensor, "N T1 H"] | None = None
    extra: Mapping[str, Float[Tensor, "N T"]] = field(default_factory=dict[str, Tensor])
    aux_loss: Float[Tensor, ""] | None = None

    @property
    def lengths(self) -> Float[Tensor, "N"]:
        """Trained tokens of each row."""
        return self.mask.sum(1).to(self.logps.dtype)

    @property
    def required_entropy(self) -> Float[Tensor, "N T"]:
        """`entropy`, for rooms that asked for it."""
        if self.entropy is None:
            raise ValueError('entropy was not computed: call forward(model, batch, needs=("entropy",))')
        return self.entropy

    def sequence_sum(self) -> Float[Tensor, "N"]:
        """Summed log-prob of each row in nats."""
        return self.logps.sum(1)

    def sequence_mean(self) -> Float[Tensor, "N"]:
        """Log-prob per trained token of each row in nats."""
        return self.logps.sum(1) / self.lengths.clamp(min=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLogps:
    """Log-probs of pairs: all that a preference loss sees.

    Attributes:
        chosen, rejected: (M,) the policy's summed log-probs in nats.
        ref_chosen, ref_rejected: (M,) the reference's, without gradient; 0 where there is no reference.
        chosen_length, rejected_length: (M,) trained tokens.
        chosen_row: (M,) the parcel's row that is chosen: pairs that share it are one answer against several. -1: not
            known, as in a step of several parcels.
        margin: (M,) how much better the data says that the chosen row is, or None.
        chosen_kl, rejected_kl: (M,) summed KL(reference || policy) of the next-token distributions along each row, in
            nats, ≥ 0, with gradient, or None.
        weight: (M,) multiplies every loss of the pair, without gradient, or None for 1.

    Example: chosen -10, ref_chosen -12, rejected -20, ref_rejected -21: chosen_logratio 2,
        rejected_logratio 1, logratio_diff 1.
    """

    chosen: Float[Tensor, "M"]
    rejected: Float[Tensor, "M"]
    ref_chosen: Float[Tensor, "M"]
    ref_rejected: Float[Tensor, "M"]
    chosen_length: Float[Tensor, "M"]
    rejected_length: Float[Tensor, "M"]
    chosen_row: Int[Tensor, "M"] | None = None
    margin: Float[Tensor, "M"] | None = None
    chosen_kl: Float[Tensor, "M"] | None = None
    rejected_kl: Float[Tensor, "M"] | None = None
    weight: Float[Tensor, "M"] | None = None

    @property
    def chosen_logratio(self) -> Float[Tensor, "M"]:
        """log policy(chosen) - log reference(chosen)."""
        return self.chosen - self.ref_chosen

    @property
    def rejected_logratio(self) -> Float[Tensor, "M"]:
        """log policy(rejected) - log reference(rejected)."""
        return self.rejected - self.ref_rejected

    @property
    def logratio_diff(self) -> Float[Tensor, "M"]:
        """chosen_logratio - rejected_logratio: the quantity that DPO pushes up."""
        return self.chosen_logratio - self.rejected_logratio

    @property
    def chosen_mean(self) -> Float[Tensor, "M"]:
        """The policy's log-prob per token of the chosen row."""
        return self.chosen / self.chosen_length.clamp(min=1)

    @property
    def rejected_mean(self) -> Float[Tensor, "M"]:
        """The policy's log-prob per token of the rejected row."""
        return self.rejected / self.rejected_length.clamp(min=1)

    @property
    def required_margin(self) -> Float[Tensor, "M"]:
        """`margin`, for losses that need it."""
        if self.margin is None:
            raise ValueError(
                "the loss needs to know how much better the chosen answer is, and the rows do not say: add a column "
                "margin, or score_chosen and score_rejected, or scores to rows of several completions"
            )
        return self.margin

    @property
    def required_kl(self) -> tuple[Float[Tensor, "M"], Float[Tensor, "M"]]:
        """`chosen_kl` and `rejected_kl`, for losses that state `needs={"divergence"}`."""
        if self.chosen_kl is None or self.rejected_kl is None:
            raise ValueError('the divergence from the reference was not computed: state needs={"divergence"}')
        return self.chosen_kl, self.rejected_kl


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
    """A weighted mean that can still be added up: over micro-batches, steps and ranks.

    Attributes:
        total: () sum of weight x value.
        weight: () sum of weights.
        squares: () sum of weight x value², from which the standard error comes.

    All are detached and stay on the device. Example: Mean.of([True, False, True]) has total 2, weight 3.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    squares: Float[Tensor, ""]

    @classmethod
    def of(cls, values: Tensor, *, weight: Tensor | None = None) -> Mean:
        """Mean of `values` (any shape), weighted by `weight` (same shape); values of weight 0 are never read."""
        numbers = wide(values.detach())
        if weight is None:
            weights = torch.ones_like(numbers)
        else:
            weights = weight.detach().to(numbers.dtype).expand_as(numbers)
            numbers = torch.where(weights != 0, numbers, torch.zeros_like(numbers))
        weighted = numbers * weights
        return cls(total=weighted.sum(), weight=weights.sum(), squares=(weighted * numbers).sum())

    def without_weight(self) -> Mean:
        """A mean of nothing: it keeps its name in step with the other ranks, and changes no sum."""
        return Mean(
            total=torch.zeros_like(self.total),
            weight=torch.zeros_like(self.weight),
            squares=torch.zeros_like(self.squares),
        )

    def __add__(self, other: Mean) -> Mean:
        return Mean(
            total=self.total + other.total,
            weight=self.weight + other.weight,
            squares=self.squares + other.squares,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Term:
    """One part of a loss: unreduced, with the unit it is averaged over.

    Attributes:
        name: what it is called in the metrics, `loss/<name>`.
        losses: the loss of each unit, with gradient; (M,) per pair or chosen_token, (N,) per row, (N, T) per token.
        per: the unit. The trainer weights, sums and divides once, by the unit's count in the whole step.
        coefficient: the term's factor in the loss.

    Example: Term(name="sft", losses=-logps_of_chosen, per="chosen_token", coefficient=0.5).
    """

    name: str
    losses: Tensor
    per: str
    coefficient: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOutput:
    """What a trainer's `loss` returns: terms with gradient and metrics without."""

    terms: tuple[Term, ...]
    metrics: Mapping[str, Mean] = field(default_factory=dict[str, Mean])

    @classmethod
    def of(
        cls, losses: Tensor, *, per: str, name: str = "loss", metrics: Mapping[str, Mean] | None = None
    ) -> LossOutput:
        """A loss of one term. `losses` is unreduced: (M,) per pair, (N,) per row, (N, T) per token."""
        return cls(terms=(Term(name=name, losses=losses, per=per),), metrics=metrics or {})


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64, or in float32 where the device has no float64 (MPS): for sums of many numbers."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, tuple):
        return tuple(_map_tensors(item, function) for item in value)  # pyright: ignore[reportUnknownVariableType]
    return value
