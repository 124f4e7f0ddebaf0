"""Which modules of a model take the lean forward of `models.elementwise`: those whose own numbers it gives.

Norms and gated feed-forwards are found by their parts, and each kind is compared with the module's own forward on a
small input: the same values bit for bit, and the same gradients. Of an attention only the rotation of queries and keys
is another one, which gives the family's to rounding. The instance's `forward` is replaced and nothing else, so that
weights, checkpoints, copies and wrappers stay as they are. A module that differs keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

from burnish.models.elementwise import ACTIVATIONS, NORMS, Activation, NormKind, gated_product, rms_norm, rotate
from burnish.models.introspect import (
    evaluation_mode,
    gated_layers,
    head_width,
    input_width,
    norm_epsilon,
    rotation_of,
    with_rotation,
)
from burnish.models.narrow import is_narrow, narrow_norms
from burnish.models.recipes import recipes_kept

if TYPE_CHECKING:
    from torch import Tensor, nn

LEAN = ("auto", "off")
TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5}  # of gradients; modules compute norms in float32
LOW_PRECISION_TOLERANCE = 2e-2
PROBE_ROWS = 3
Forward = Callable[..., Any]  # (module, states) -> states
_MARK = "_burnish_lean"


def install_lean(trunk: nn.Module, wanted: str = "auto") -> None:
    """Give norms and gated feed-forwards of a trunk the forward that keeps less, in place, or their own back.

    Args:
        trunk: of a causal model; modules whose `forward` somebody else has replaced stay as they are.
        wanted: `auto`, or `off`.

    Raises:
        ValueError: another word.
    """
    if wanted not in LEAN:
        raise ValueError(f"lean_activations={wanted!r}; allowed: {', '.join(LEAN)}")
    chosen: dict[tuple[Any, ...], Forward | None] = {}
    for module in trunk.modules():
        if is_lean(module):
            del vars(module)["forward"]
        if wanted == "off" or "forward" in vars(module):
            continue
        kind = (type(module), *(type(child) for child in module.children()), *_properties(module))
        if kind not in chosen:
            found = _lean_forward(module)
            chosen[kind] = None if found is None else _marked(found)
        if (forward := chosen[kind]) is not None:
            vars(module)["forward"] = MethodType(forward, module)
    narrow_norms(trunk, [module for module in trunk.modules() if is_lean(module) and norm_epsilon(module) is not None])


def is_lean(module: nn.Module) -> bool:
    """The module has a forward that keeps less."""
    forward = vars(module).get("forward")
    return isinstance(forward, MethodType) and _MARK in vars(forward.__func__)


def keeping_less(trunk: nn.Module) -> AbstractContextManager[None]:
    """What a forward under autograd runs in, so that the trunk's lean modules keep recipes."""
    is_useful = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return recipes_kept() if is_useful and any(map(is_lean, trunk.modules())) else nullcontext()


def lean_modules(model: nn.Module) -> dict[str, int]:
    """How many modules of each class have a forward that keeps less."""
    names = sorted(type(module).__name__ for module in model.modules() if is_lean(module))
    return {name: names.count(name) for name in dict.fromkeys(names)}


def lean_line(model: nn.Module) -> str:
    """For the console and the report: what keeps less."""
    found = ", ".join(f"{count} {name}" for name, count in lean_modules(model).items())
    return f"Computed again in the backward pass and not kept: what is inside of {found or 'no module'}."


def _properties(module: nn.Module) -> tuple[Any, ...]:
    """What else decides whether a forward is right: the module's plain numbers and words, and dtypes."""
    plain = ((name, value) for name, value in vars(module).items() if isinstance(value, int | float | str))
    return *plain, *(parameter.dtype for parameter in module.parameters())


def _lean_forward(module: nn.Module) -> Forward | None:
    """The forward that gives a module's own numbers and keeps less; None if there is none."""
    rotation = rotation_of(module)
    if rotation is None:
        return next((forward for forward in _candidates(module) if _is_right(module, forward)), None)
    is_right = _rotates_so(rotation, head_width(module) or 0, next(module.parameters()).device)
    return with_rotation(module, rotate) if is_right else None


def _marked(forward: Forward) -> Forward:
    """To be told from what others put in; under torch.compile, which fuses these parts itself, the class's own."""

    def lean(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (type(self).forward if torch.compiler.is_compiling() else forward)(self, *args, **kwargs)

    vars(lean)[_MARK] = True
    return lean


def _candidates(module: nn.Module) -> list[Forward]:
    """The forwards that a module of these parts may have."""
    if (eps := norm_epsilon(module)) is not None:
        return [_norm_forward(eps, kind) for kind in NORMS.values()]
    if (names := gated_layers(module)) is not None:
        return [_gated_forward(names, activation) for activation in ACTIVATIONS.values()]
    return []


def _norm_forward(eps: float, kind: NormKind) -> Forward:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, eps=eps, kind=kind, narrow=is_narrow(self))

    return forward


def _gated_forward(names: tuple[str, str, str], activation: Activation) -> Forward:
    def forward(self: Any, x: Tensor) -> Tensor:
        gate_layer, up_layer, down_layer = (getattr(self, name) for name in names)
        gate, up = gate_layer(x), up_layer(x)
        dtype = torch.promote_types(gate.dtype, up.dtype)  # one of them may have an adapter of another precision
        return down_layer(gated_product(gate.to(dtype).contiguous(), up.to(dtype).contiguous(), activation))

    return forward


def _is_right(module: nn.Module, forward: Forward) -> bool:
    """It gives the module's own values bit for bit, and its gradients, in evaluation mode."""
    weight = next(module.parameters())
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    dtypes = {dtype} if norm_epsilon(module) is None else {dtype, torch.bfloat16}  # where a norm casts shows only there
    with evaluation_mode(module), torch.autocast(weight.device.type, enabled=False):
        try:
            return all(_agrees(module, forward, kind) for kind in dtypes)
        except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError, IndexError):
            return False


def _agrees(module: nn.Module, forward: Forward, dtype: torch.dtype) -> bool:
    exact, exact_grads = _values_and_gradients(module, type(module).forward, dtype)
    found, found_grads = _values_and_gradients(module, forward, dtype)
    is_same = found.dtype == exact.dtype and torch.equal(found, exact)
    return is_same and _are_close(found_grads, exact_grads, dtype)


def _rotates_so(rotation: Forward, width: int, device: torch.device) -> bool:
    """A family's rotation of queries and keys gives the numbers and gradients of `rotate`, in the same precision."""
    angles = torch.arange(PROBE_ROWS * width // 2, device=device).view(1, PROBE_ROWS, -1).repeat(1, 1, 2)  # (1, 3, D)
    cos, sin = angles.cos(), angles.sin()
    numbers = torch.arange(PROBE_ROWS**2 * width, device=device).sin().view(1, PROBE_ROWS, PROBE_ROWS, width)
    with suppress(RuntimeError):  # it is for parts of heads too, which `rotate` is not
        rotation(*numbers.split([2, 1], dim=1), cos[..., : width // 2], sin[..., : width // 2])
        return False
    try:
        return all(
            _are_close(_rotated(rotate, states, cos, sin), _rotated(rotation, states, cos, sin), states.dtype)
            for states in (numbers, numbers.bfloat16())
        )
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False


def _rotated(function: Forward, numbers: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """Two heads of queries and one of keys rotated, and the gradients of both."""
    states = [part.detach().requires_grad_() for part in numbers.split([2, 1], dim=1)]
    with torch.enable_grad():
        query, key = function(*states, cos, sin)
    factors = numbers.cos().to(query.dtype).split([2, 1], dim=1)
    return [query.detach(), key.detach(), *torch.autograd.grad((query, key), states, factors)]


def _are_close(found: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Each is the other to the rounding of a precision, and has its dtype."""
    tolerance = TOLERANCES.get(dtype, LOW_PRECISION_TOLERANCE)
    return all(
        one.dtype == other.dtype and float((one - other).double().norm()) <= tolerance * float(other.double().norm())
        for one, other in zip(found, exact, strict=True)
    )


def _values_and_gradients(module: nn.Module, forward: Forward, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Of a few rows, for the input and all that is trained in the module."""
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = next(module.parameters()).device
    numbers = torch.arange(PROBE_ROWS * input_width(module), dtype=torch.float64, device=device)
    states = numbers.square().mul(0.7).sin().mul(2).to(dtype).view(1, PROBE_ROWS, -1).requires_grad_()
    with torch.enable_grad(), recipes_kept():
        values = forward(module, states)
    factors = (
        torch.arange(values.numel(), dtype=torch.float64, device=device).square().mul(0.3).cos()
    )  # no row is like another
    return values.detach(), torch.autograd.grad(values, [states, *weights], factors.view_as(values).to(values.dtype))
