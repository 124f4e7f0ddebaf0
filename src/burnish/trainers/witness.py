"""A trainer that is watched while it trains: what each of its rooms got and gave, the first time that it was entered.

    watched(DPOTrainer, witness)  ->  a subclass whose rooms call those of DPOTrainer, and tell the witness

A room is a method that receives or returns a parcel, of whatever trainer, so that a new one needs no entry anywhere.
Nothing is copied and nothing computed anew: a parcel is never changed, so that keeping it is enough.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils import get_total_norm

from burnish.trainers.base import PolicyTrainer
from burnish.types import Mean

if TYPE_CHECKING:
    from torch import nn

Watched = TypeVar("Watched", bound=PolicyTrainer)

FORWARD, BACKWARD = "forward", "backward"
UNWATCHED = ("check_first_step", "_open_run", "_clip_grad_norm", "_get_grad_norm")  # beside the way of a micro-batch
NUM_NORMS = 12


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """One call of a room.

    Attributes:
        room: the method's name.
        owner: the class that has it.
        sentence: the first line of its docstring.
        received: the parcels that it was given, by the names of its parameters.
        returned: what it gave.
    """

    room: str
    owner: str
    sentence: str
    received: Mapping[str, Any] = field(default_factory=dict[str, Any])
    returned: Any = None


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What the backward pass of one micro-batch left.

    Attributes:
        total: () length of the whole gradient, not clipped.
        norms: () of the parameters whose gradients are the longest, the longest first.
    """

    total: Tensor
    norms: Mapping[str, Tensor]


class Witness:
    """Remembers the first call of every room.

    Attributes:
        crossings: in the order in which the rooms were left.
    """

    def __init__(self) -> None:
        self.crossings: list[Crossing] = []
        self._looks = True

    def keep(self, crossing: Crossing) -> None:
        """Remember a call, unless its room is known already."""
        if self._looks and crossing.room not in {known.room for known in self.crossings}:
            self.crossings.append(crossing)

    def __getitem__(self, room: str) -> Crossing:
        """The first call of a room; KeyError if there was none."""
        for crossing in self.crossings:
            if crossing.room == room:
                return crossing
        raise KeyError(room)

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Nothing inside is remembered."""
        before, self._looks = self._looks, False
        try:
            yield
        finally:
            self._looks = before


def watched(trainer_class: type[Watched], witness: Witness) -> type[Watched]:
    """A subclass of a trainer that trains as it does, and tells the witness what crosses the walls of its rooms.

    Args:
        trainer_class: concrete.
        witness: remembers.
    """
    own: dict[str, Any] = {name: vars(trainer_class).get(name) for name in ("__module__", "__doc__")}
    for name, (owner, method) in _methods(trainer_class).items():
        own[name] = _unwatched(method, witness) if name in UNWATCHED else _room(owner, method, witness)
    _, step = _methods(trainer_class)["training_step"]
    own["training_step"] = _training_step(step, witness)
    return cast("type[Watched]", type(trainer_class.__name__, (trainer_class,), own))


def is_parcel(value: Any) -> bool:
    """Whether a value is what rooms hand on: a tensor, a data set, a dataclass that holds tensors, or several."""
    if isinstance(value, Tensor | Dataset):
        return True
    if isinstance(value, list | tuple):
        return bool(value) and is_parcel(value[0])
    if not is_dataclass(value) or isinstance(value, type | Mean):
        return False
    return type(value).__module__.startswith("burnish.types") or any(
        isinstance(vars(value)[part.name], Tensor) for part in fields(value)
    )


def _methods(trainer_class: type) -> dict[str, tuple[type, Callable[..., Any]]]:
    """The methods of a trainer that are not those of transformers, each with the class that defines it."""
    found: dict[str, tuple[type, Callable[..., Any]]] = {}
    for base in trainer_class.__mro__:
        if not base.__module__.startswith("transformers."):
            for name, method in vars(base).items():
                if inspect.isfunction(method) and not name.startswith("__"):
                    found.setdefault(name, (base, method))
    return found


def _room(owner: type, method: Callable[..., Any], witness: Witness) -> Callable[..., Any]:
    signature = inspect.signature(method)
    sentence = (inspect.getdoc(method) or "").partition("\n")[0]

    @functools.wraps(method)
    def room(*args: Any, **kwargs: Any) -> Any:
        returned = method(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        received = {name: value for name, value in given.items() if is_parcel(value)}
        if is_parcel(returned):
            witness.keep(
                Crossing(
                    room=method.__name__,
                    owner=owner.__name__,
                    sentence=sentence,
                    received=received,
                    returned=returned,
                )
            )
        return returned

    return room


def _unwatched(method: Callable[..., Any], witness: Witness) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with witness.looking_away():
            return method(*args, **kwargs)

    return call


def _training_step(method: Callable[..., Any], witness: Witness) -> Callable[..., Any]:
    """Forward and backward of a micro-batch, with what the model itself says in between and what it leaves behind."""

    @functools.wraps(method)
    def training_step(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        handle = model.register_forward_hook(functools.partial(_heard, witness), with_kwargs=True)
        try:
            loss = method(self, model, *args, **kwargs)
        finally:
            handle.remove()
        scaler = self.accelerator.scaler
        norms = gradients(model, scale=1.0 if scaler is None else scaler.get_scale())
        sentence = "The length of the gradient that this micro-batch adds, before clipping."
        witness.keep(Crossing(room=BACKWARD, owner="transformers.Trainer", sentence=sentence, returned=norms))
        return loss

    return training_step


def _heard(witness: Witness, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """A call of the wrapped model with a parcel, under gradient."""
    if "token_batch" in kwargs and torch.is_grad_enabled():
        received = {"token_batch": kwargs["token_batch"]}
        sentence = "Trunk and heads of a micro-batch, in one call of the wrapped model."
        witness.keep(
            Crossing(room=FORWARD, owner=type(model).__name__, sentence=sentence, received=received, returned=output)
        )


def gradients(model: nn.Module, *, scale: float = 1.0) -> Gradients:
    """The lengths of a model's gradients as they are now, divided by `scale`."""
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    norms = {name: grad.norm() / scale for name, grad in found.items()}
    longest = sorted(norms, key=lambda name: float(norms[name]), reverse=True)[:NUM_NORMS]
    return Gradients(total=get_total_norm(list(found.values())) / scale, norms={name: norms[name] for name in longest})
