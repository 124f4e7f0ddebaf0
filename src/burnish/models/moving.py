"""Moving references: models that follow the policy after its steps, and remember where they are.

    TR-DPO   ref <- alpha policy + (1 - alpha) ref                            every tau steps
    BEMA     ema <- (1 - b) ema + b policy,   ref <- ema + a (policy - start)   every phi steps

Weights are mixed in float32 or wider whatever the dtype of the models, and in place. Buffers are no weights: they are
taken from the policy as they are. A tied weight is one weight. All that moves is in `state_dict`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

from burnish.models.reference import FrozenModel, sampled_fingerprint
from burnish.registry import closest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class SyncSchedule:
    """When and how far a reference of TR-DPO moves: every `sync_steps` steps, by `mixup_alpha` of the way.

    Raises:
        ValueError: a number that is not allowed.
    """

    mixup_alpha: float = 0.6
    sync_steps: int = 512

    def __post_init__(self) -> None:
        _check_number("ref_model_mixup_alpha", self.mixup_alpha, at_most=1)
        if self.mixup_alpha == 0:
            raise ValueError("ref_model_mixup_alpha=0 would never move the reference: set sync_ref_model=False instead")
        _check_count("ref_model_sync_steps", self.sync_steps, at_least=1)

    def moves(self, step: int) -> bool:
        """Whether the reference moves after this step, counted from 1."""
        return step % self.sync_steps == 0


@dataclass(frozen=True, kw_only=True)
class BemaSchedule:
    """When and how far a BEMA reference moves: the numbers of a step t, counted from 1.

    b = max((lag + multiplier t)^-ema_power, min_ema_multiplier),   a = (lag + multiplier t)^-bias_power

    Attributes:
        update_freq: the reference moves every so many steps after `update_after`. Paper: phi.
        ema_power: how fast the average slows down; 0: no average, b = 1. Paper: kappa.
        bias_power: how fast the correction fades; 0: it stays whole, a = 1. Paper: eta.
        lag: the age of the average at the start. Paper: rho.
        update_after: the step at which both start and average become the policy; 0: before the first. Paper: tau.
        multiplier: how much older the average gets with each step. Paper: gamma.
        min_ema_multiplier: the least b.

    Raises:
        ValueError: a number that is not allowed.

    Source: BEMA (2508.00180), algorithm 1.

    Example:
        >>> schedule = BemaSchedule(lag=4, multiplier=1.0, ema_power=0.5, bias_power=1.0)
        >>> schedule.ema_share(12), schedule.bias_factor(12)
        (0.25, 0.0625)
    """

    update_freq: int = 400
    ema_power: float = 0.5
    bias_power: float = 0.2
    lag: float = 10
    update_after: int = 0
    multiplier: float = 1.0
    min_ema_multiplier: float = 0.0

    def __post_init__(self) -> None:
        _check_count("ref_model_bema: update_freq", self.update_freq, at_least=1)
        _check_count("ref_model_bema: update_after", self.update_after, at_least=0)
        for name in ("ema_power", "bias_power", "lag", "multiplier"):
            _check_number(f"ref_model_bema: {name}", vars(self)[name])
        _check_number("ref_model_bema: min_ema_multiplier", self.min_ema_multiplier, at_most=1)
        if self.lag + self.multiplier < 1:
            raise ValueError(
                f"ref_model_bema: lag={self.lag!r} and multiplier={self.multiplier!r} sum up to less than 1, so that "
                "the first steps would weigh more than the whole: raise one of them"
            )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> BemaSchedule:
        """The schedule that `ref_model_bema` describes.

        Raises:
            ValueError: an unknown name, or a number that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in options if name not in known]:
            hints = "; ".join(f"{name!r}{closest(name, known)}" for name in unknown)
            raise ValueError(f"ref_model_bema has no option {hints}. Known: {', '.join(known)}")
        return cls(**options)

    def begins(self, step: int) -> bool:
        """Whether this step's policy is where start and average begin."""
        return step == self.update_after

    def moves(self, step: int) -> bool:
        """Whether the reference moves after this step."""
        return step > self.update_after and (step - self.update_after) % self.update_freq == 0

    def ema_share(self, step: int) -> float:
        """The policy's share b in the average, in (0, 1]."""
        return max((self.lag + self.multiplier * step) ** -self.ema_power, self.min_ema_multiplier)

    def bias_factor(self, step: int) -> float:
        """The factor a of the correction, in (0, 1]."""
        return (self.lag + self.multiplier * step) ** -self.bias_power


class MovingReference(FrozenModel):
    """A model that is moved after the policy's steps, without gradient. Abstract: `follow`, `tensors`.

    Its fingerprint is that of its weights at construction: what the run began with.

    Args:
        model: where it starts, with `install_forward`; it is moved in place, so it must not be the policy.
        description: for the report.
    """

    def __init__(self, model: PreTrainedModel, *, description: str) -> None:
        super().__init__(model, description=description)
        self._began_with = sampled_fingerprint(self.model)

    def fingerprint(self) -> str:
        """Hash of the weights at construction."""
        return self._began_with

    @abstractmethod
    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Move, if the schedule says so.

        Args:
            policy: the bare policy, without any wrapper, after its optimizer step.
            step: that step, counted from 1.
        """

    @abstractmethod
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that moves, in groups, by name: written in place."""

    def state_dict(self) -> dict[str, Any]:
        """Every tensor that moves."""
        return self.tensors()

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for group, tensors in self.tensors().items():
            for name, tensor in tensors.items():
                tensor.copy_(state[group][name])

    def _own(self) -> dict[str, dict[str, Tensor]]:
        return {"weights": dict(self.model.named_parameters()), "buffers": dict(self.model.named_buffers())}


class SyncedReference(MovingReference):
    """TR-DPO: every `sync_steps` steps the reference moves by `mixup_alpha` of the way to the policy.

    ref <- alpha policy + (1 - alpha) ref

    alpha = 1 is the hard update. Models in half precision have a copy of the weights in float32 beside them, in which
    a small alpha is not rounded away; the hard update needs none.

    Source: TR-DPO (2404.09656), soft and hard update.
    """

    def __init__(self, model: PreTrainedModel, schedule: SyncSchedule, *, description: str) -> None:
        alpha, steps = schedule.mixup_alpha, schedule.sync_steps
        moves = f"moves every {steps} steps to {alpha:g} policy + {1 - alpha:g} reference (TR-DPO)"
        super().__init__(model, description=f"{description}; {moves}")
        self.schedule = schedule
        self._wide = {
            name: weight.to(wide_dtype(weight))
            for name, weight in self.model.named_parameters()
            if weight.dtype != wide_dtype(weight) and alpha != 1
        }

    @torch.no_grad()
    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Mix a share of the policy in, every `sync_steps` steps."""
        if not self.schedule.moves(step):
            return
        for name, own, other in aligned(self.model, policy):
            mixed = self._wide.get(name, own)
            mixed.lerp_(other.to(mixed), self.schedule.mixup_alpha)
            own.copy_(mixed)
        copy_buffers(self.model, policy)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights and buffers of the reference, and the wider weights behind them."""
        return {**self._own(), "wide": self._wide}


class BemaReference(MovingReference):
    """BEMA: an exponential moving average of the policy, with a correction for its lagging behind.

    ema <- (1 - b) ema + b policy,   ref <- ema + a (policy - start)

    b and a are those of `BemaSchedule`. The reference stays what it was until its first move, at `update_after +
    update_freq`. Start and average are kept beside it: a copy of the weights as they are, and one in float32 or wider.

    Source: BEMA (2508.00180), algorithm 1; as a moving reference: TRL's experimental `bema_for_ref_model`.
    """

    def __init__(self, model: PreTrainedModel, schedule: BemaSchedule, *, description: str) -> None:
        moves = f"moves every {schedule.update_freq} steps to the policy's corrected moving average (BEMA)"
        super().__init__(model, description=f"{description}; {moves}")
        self.schedule = schedule
        weights = dict(self.model.named_parameters())
        self._start = {name: weight.clone() for name, weight in weights.items()}
        self._average = {name: weight.to(wide_dtype(weight), copy=True) for name, weight in weights.items()}

    @torch.no_grad()
    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Take the policy as the start at `update_after`; move every `update_freq` steps after it."""
        if self.schedule.begins(step):
            for name, _, other in aligned(self.model, policy):
                self._start[name].copy_(other)
                self._average[name].copy_(other)
        if not self.schedule.moves(step):
            return
        share, factor = self.schedule.ema_share(step), self.schedule.bias_factor(step)
        for name, own, other in aligned(self.model, policy):
            average, start = self._average[name], self._start[name]
            now = other.to(average)
            average.lerp_(now, share)
            own.copy_(torch.add(average, now - start.to(average), alpha=factor))
        copy_buffers(self.model, policy)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights and buffers of the reference, the start and the average."""
        return {**self._own(), "start": self._start, "average": self._average}


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which a weight is averaged: its own, or float32 if that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def aligned(reference: nn.Module, policy: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each weight's name, with the reference's tensor and the policy's. A tied weight comes once."""
    others = dict(policy.named_parameters())
    for name, own in reference.named_parameters():
        yield name, own, others[name].detach()


def copy_buffers(reference: nn.Module, policy: nn.Module) -> None:
    """Take every buffer from the policy."""
    others = dict(policy.named_buffers())
    for name, own in reference.named_buffers():
        own.copy_(others[name])


def check_can_follow(reference: nn.Module, policy: nn.Module) -> None:
    """Refuse a reference that has not the policy's weights and buffers, by name and shape.

    Raises:
        ValueError: names the first that differs.
    """
    for kind, own, others in (
        ("weight", dict(reference.named_parameters()), dict(policy.named_parameters())),
        ("buffer", dict(reference.named_buffers()), dict(policy.named_buffers())),
    ):
        for name in sorted({*own, *others}):
            found = [tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (own, others)]
            if found[0] != found[1]:
                raise ValueError(
                    f"a moving reference is mixed with the policy weight by weight, and the {kind} {name!r} is "
                    f"{found[0]} in ref_model and {found[1]} in the policy: give a ref_model of the same "
                    "architecture, or leave it out and a copy of the policy is taken"
                )
            if kind == "weight" and not own[name].is_floating_point():
                raise ValueError(
                    f"a moving reference mixes weights, and {name!r} is {own[name].dtype}: quantised models cannot be "
                    "mixed. Load both without quantisation."
                )


def _check_number(name: str, value: float, *, at_most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= at_most or value == math.inf:
        allowed = "0 or more" if at_most == math.inf else f"0 to {at_most:g}"
        raise ValueError(f"{name}={value!r}; allowed: {allowed}")


def _check_count(name: str, value: int, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name}={value!r}; allowed: whole numbers from {at_least}")
