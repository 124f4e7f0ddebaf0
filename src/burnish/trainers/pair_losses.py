"""The losses of a preference trainer: names, weights and options -> closed functions of a pair, checked before a run.

pair -> divergence (for losses of the log-ratio difference) -> each loss -> x weight of the pair -> Term
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from burnish.compat import LOSS_ALIASES
from burnish.losses import divergences, preference_losses
from burnish.losses.divergence import with_scores
from burnish.registry import Entry
from burnish.runtime.state import RunningMeans
from burnish.trainers.coupling import coupled_losses
from burnish.types import PAIR_UNITS, PairLogps, PreferenceBatch, Term

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.trainers.dpo import DPOConfig


@dataclass(frozen=True)
class PairLosses:
    """Bound rows of the table of preference losses, with their weights and their divergence.

    Attributes:
        entries: the losses.
        weights: the factor of each in the sum.
        divergence: log-ratio -> score, for the losses that read log-ratio differences.
    """

    entries: tuple[Entry[Any, Tensor], ...]
    weights: tuple[float, ...]
    divergence: Callable[[Tensor], Tensor]

    @property
    def needs(self) -> frozenset[str]:
        """What the forward must compute for them."""
        return frozenset[str]().union(*(entry.facts["needs"] for entry in self.entries))

    @property
    def need_reference(self) -> bool:
        """Whether any of them reads the reference."""
        return any(entry.facts["reference"] != "none" for entry in self.entries)

    @property
    def couple_rows(self) -> bool:
        """Whether any of them sees the whole step."""
        return any(entry.facts["couples_rows"] for entry in self.entries)

    @property
    def reward(self) -> str:
        """The implicit reward of the first: `sum` over tokens, or `mean` per token."""
        return self.entries[0].facts["reward"]

    @property
    def follows(self) -> frozenset[tuple[str, float | None]]:
        """Metrics and momentum of the running means that they read."""
        rows = [follows for entry in self.entries for follows in entry.facts["follows"].values()]
        return frozenset((row.metric, row.momentum) for row in rows)

    def step_wide(self, running: RunningMeans) -> dict[str, Callable[[PairLogps], Tensor]]:
        """The functions of those that couple rows."""
        return {e.name: self._function(e, running) for e in self.entries if e.facts["couples_rows"]}

    def terms(self, pair: PairLogps, batch: PreferenceBatch, running: RunningMeans) -> tuple[Term, ...]:
        """One term for each loss: (M,), unreduced."""
        weight = 1.0 if pair.weight is None else pair.weight
        parts: list[Term] = []
        for entry, coefficient in zip(self.entries, self.weights, strict=True):
            couples = entry.facts["couples_rows"]
            losses = coupled_losses(entry.name, pair, batch) if couples else self._function(entry, running)(pair)
            parts.append(Term(name=entry.name, losses=losses * weight, per=entry.facts["per"], coefficient=coefficient))
        return tuple(parts)

    def describe(self) -> list[dict[str, Any]]:
        """Name, paper and weight of each, for the manifest."""
        return [
            {"name": entry.name, "paper": entry.paper, "weight": weight}
            for entry, weight in zip(self.entries, self.weights, strict=True)
        ]

    def _function(self, entry: Entry[Any, Tensor], running: RunningMeans) -> Callable[[PairLogps], Tensor]:
        followed = {name: running.value(row.metric, row.momentum) for name, row in entry.facts["follows"].items()}
        loss = partial(entry.function, **followed)
        if entry.facts["reference"] != "difference":
            return loss
        return lambda pair: loss(with_scores(pair, self.divergence))


def bind_losses(config: DPOConfig) -> PairLosses:
    """The losses that a configuration names, each called once on two made-up pairs.

    Raises:
        ValueError: an unknown loss or divergence, an option that none of them reads, a divergence with a loss whose
            algebra does not allow it, or a loss whose result has not one number for each pair.
    """
    choices, weights = chosen_losses(config)
    entries = preference_losses.bind(
        choices,
        config,
        config.loss_kwargs,
        read_elsewhere=frozenset({"beta"}),  # by rewards/*
    )
    (divergence,) = divergences.bind([config.f_divergence_type], config)
    losses = PairLosses(tuple(entries), tuple(weights), divergence.function)
    if config.f_divergence_type != "reverse_kl":
        _refuse_divergence(losses, config.f_divergence_type)
    if losses.couple_rows and config.use_weighting:
        raise ValueError("use_weighting weights pairs, and a loss that couples rows has none: set use_weighting=False")
    for entry in entries:
        _check(entry, losses)
    return losses


def check_losses(losses: Sequence[Any], weights: Any) -> None:
    """Refuse a sum of losses that is none.

    Raises:
        ValueError: no loss, or weights that are not one finite number for each, or all 0.
    """
    if not losses:
        raise ValueError("loss_type is empty: give the name of a loss, a callable, or a list of them")
    if weights is None:
        return
    if not isinstance(weights, list | tuple) or not all(_is_finite(weight) for weight in weights) or not any(weights):
        raise ValueError(f"loss_weights={weights!r}; allowed: a list of finite numbers that are not all 0")
    if len(weights) != len(losses):
        raise ValueError(
            f"loss_weights has {len(weights)} numbers for {len(losses)} losses {losses}: give one for each"
        )


def _is_finite(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)


def chosen_losses(config: DPOConfig) -> tuple[list[Any], list[float]]:
    """Losses and weights, with `rpo_alpha` as the weight of one more, `sft`."""
    choices = [LOSS_ALIASES.get(item, item) if isinstance(item, str) else item for item in config.loss_type]
    weights = list(config.loss_weights or [1.0] * len(choices))
    if config.rpo_alpha is None:
        return choices, weights
    return [*choices, "sft"], [*weights, config.rpo_alpha]


def _refuse_divergence(losses: PairLosses, name: str) -> None:
    wrong = [entry.name for entry in losses.entries if entry.facts["reference"] == "ratios"]
    right = sorted(row for row in preference_losses if preference_losses[row].facts["reference"] == "difference")
    if wrong or not losses.need_reference:
        raise ValueError(
            f"f_divergence_type={name!r} replaces the log-ratio in a difference of two answers, where what depends on "
            f"the prompt alone cancels; {wrong or [e.name for e in losses.entries]} read no such difference. "
            f"Use reverse_kl, or one of: {', '.join(right)}"
        )


def _check(entry: Entry[Any, Tensor], losses: PairLosses) -> None:
    """Call a loss on two pairs, so that a wrong option or result is found before a model is loaded."""
    ones = torch.ones(2)
    pair = PairLogps(
        chosen=-2 * ones,
        rejected=-3 * ones,
        ref_chosen=-2 * ones,
        ref_rejected=-3 * ones,
        chosen_length=ones,
        rejected_length=ones,
        chosen_row=torch.arange(2),
        margin=ones,
        chosen_kl=ones,
        rejected_kl=ones,
    )
    running = RunningMeans(losses.follows)
    result = losses._function(entry, running)(pair)
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
    if entry.facts["per"] in PAIR_UNITS and shape != (2,):
        raise ValueError(
            f"the loss {entry.name!r} returned {shape} for two pairs: return a tensor (M,), the loss of each pair, "
            "not a sum or a mean"
        )


def loss_names(losses: Sequence[Any]) -> list[str]:
    """How losses are written in a run file: a name, or module:function."""
    return [loss if isinstance(loss, str) else f"{loss.__module__}:{loss.__qualname__}" for loss in losses]
