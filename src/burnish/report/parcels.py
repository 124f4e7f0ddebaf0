"""A parcel as its fields: name, letters and shape, dtype and first values of each, read off the dataclass itself.

Example: `TokenStats` gives `logps`, (N, T) = 4 x 6, float32, [[-4.09 -3.74 …] …], and so on down to `sequence_sum()`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from burnish.types import LossOutput, Mean, Term

ROWS, COLUMNS, ENTRIES, NAMES = 2, 8, 12, 24
LETTERS = re.compile(r"\[Tensor, .([\w ]*).\]")
DERIVED = re.compile(r"Float\[")  # quantities that are computed from the fields


@dataclass(frozen=True)
class Field:
    """One field of a parcel.

    Attributes:
        name: as code would write it behind the parcel.
        letters: of the shape, as the legend has them: "N T"; "" if unknown.
        value: a tensor, a mean, or a plain value.
        is_derived: it is computed from the other fields.
    """

    name: str
    letters: str
    value: Any
    is_derived: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is a stored tensor or mean: what is either new, or carried on."""
        return isinstance(self.value, Tensor | Mean) and not self.is_derived

    @property
    def shape(self) -> str:
        """Letters and sizes, for tensors."""
        if not isinstance(self.value, Tensor):
            return ""
        sizes = f"({', '.join(map(str, self.value.shape))})"
        return f"({', '.join(self.letters.split())}) = {sizes}" if self.letters else sizes

    @property
    def dtype(self) -> str:
        """Of a tensor; of a plain value, its type."""
        value = self.value
        return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__

    @property
    def shown(self) -> str:
        """The first values."""
        return first_values(self.value)


def number(value: float) -> str:
    """Four digits; the sign of a zero is dropped.

    >>> number(-12.34567), number(-0.0)
    ('-12.35', '0')
    """
    return f"{value + 0.0:.4g}"


def first_values(value: Any) -> str:
    """The beginning of a tensor, in one line; of a mean, itself and what it is over; of another value, as it is.

    >>> import torch
    >>> first_values(torch.arange(30.0).view(3, 10))
    '[[0 1 2 3 4 5 6 7 …] [10 11 12 13 14 15 16 17 …] …]'
    """
    if isinstance(value, Mean):
        weight = float(value.weight)
        return f"{number(float(value.total) / weight)} over {number(weight)}" if weight else "of nothing"
    if isinstance(value, list) and value and isinstance(value[0], bool | int | float):
        value = torch.tensor(value)  # token ids and masks of a row of a data set
    if not isinstance(value, Tensor):
        text = str(value)
        return text if len(text) <= 400 else f"{text[:400]}… ({len(text)} characters)"
    return _values(value.detach().cpu(), ROWS if value.ndim > 1 else COLUMNS)


def _values(tensor: Tensor, limit: int) -> str:
    if tensor.ndim == 0:
        return number(tensor.item()) if tensor.is_floating_point() else str(int(tensor))
    inner = [_values(part, COLUMNS if part.ndim < 2 else ROWS) for part in tensor[:limit]]
    return f"[{' '.join([*inner, '…'] if len(tensor) > limit else inner)}]"


def fields_of(value: Any, name: str = "") -> Iterator[Field]:
    """Every field of a parcel that says something; of several parcels, of the first.

    Args:
        value: what crosses a wall.
        name: what it is called where it is no parcel of its own.
    """
    for kind, read in READERS:
        if isinstance(value, kind):
            yield from read(value, name)
            return
    if is_dataclass(value):
        yield from _of_dataclass(value, name)
    elif value is not None and value != "":
        yield Field(name, "", value)


def kind_of(value: Any) -> str:
    """What a value is: the name of its class; of several, how many.

    >>> kind_of([1, 2])
    '2 x int'
    """
    if isinstance(value, tuple) and len({type(item) for item in value}) > 1:
        return ", ".join(map(kind_of, value))
    if isinstance(value, list | tuple):
        return f"{len(value)} x {kind_of(value[0])}" if value else "nothing"
    return type(value).__name__


def _of_dataclass(value: Any, name: str) -> Iterator[Field]:
    prefix = f"{name}." if name else ""
    for part in fields(value):
        if vars(value)[part.name] is part.default or _is_plain_default(vars(value)[part.name], part.default):
            continue
        for found in fields_of(vars(value)[part.name], f"{prefix}{part.name}"):
            is_tensor = isinstance(vars(value)[part.name], Tensor)
            yield Field(found.name, letters_of(part.type), found.value) if is_tensor else found
    for derived, annotation, read in _derived(type(value)):
        yield Field(f"{prefix}{derived}", letters_of(annotation), read(value), is_derived=True)


def _is_plain_default(value: Any, default: Any) -> bool:
    return isinstance(value, bool | int | float | str) and value == default


def _derived(kind: type) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
    """Properties, and methods without arguments, that give numbers of the fields."""
    for base in kind.__mro__:
        for name, member in vars(base).items():
            function = member.fget if isinstance(member, property) else member
            if not inspect.isfunction(function) or name.startswith(("_", "required_")):
                continue
            signature = inspect.signature(function)
            if DERIVED.match(str(signature.return_annotation)) and len(signature.parameters) == 1:
                yield (name if isinstance(member, property) else f"{name}()"), signature.return_annotation, function


def letters_of(annotation: Any) -> str:
    """The letters of a tensor's shape in an annotation.

    >>> letters_of('Float[Tensor, "N T"] | None')
    'N T'
    """
    found = LETTERS.search(str(annotation))
    return found[1] if found else ""


def _of_tensor(value: Tensor, name: str) -> Iterator[Field]:
    yield Field(name or "value", "", value)


def _of_mean(value: Mean, name: str) -> Iterator[Field]:
    yield Field(name, "", value)


def _of_mapping(value: Mapping[str, Any], name: str) -> Iterator[Field]:
    for key, item in islice(value.items(), NAMES):
        yield from fields_of(item, f"{name}[{key!r}]")
    if len(value) > NAMES:
        yield Field(name, "", f"… {len(value) - NAMES} more")


def _of_several(value: Any, name: str) -> Iterator[Field]:
    """The first parcel of many, every term, each of several kinds; plain values as they are, the first ones of many."""
    if not value:
        return
    if not _holds_numbers(value):
        more = f" … {len(value)} in all" if len(value) > ENTRIES else ""
        yield Field(name, "", f"{' '.join(map(str, value[:ENTRIES]))}{more}")
        return
    is_mixed = isinstance(value, tuple) and len({type(item) for item in value}) > 1
    for item in value if is_mixed or isinstance(value[0], Term) else value[:1]:
        yield from fields_of(item, name)


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and _holds_numbers(value[0])
    if isinstance(value, Mapping):
        return any(map(_holds_numbers, value.values()))
    return isinstance(value, Tensor) or is_dataclass(value)


def _of_output(value: LossOutput, name: str) -> Iterator[Field]:
    del name
    yield from _of_several(value.terms, "")
    yield from _of_mapping(value.metrics, "metrics")


def _of_term(value: Term, name: str) -> Iterator[Field]:
    del name
    factor = "" if value.coefficient == 1 else f", times {number(value.coefficient)}"
    yield Field(f"term {value.name!r}, per {value.per}{factor}", "", value.losses)


READERS: tuple[tuple[Any, Callable[[Any, str], Iterator[Field]]], ...] = (
    (Tensor, _of_tensor),
    (Mean, _of_mean),
    (LossOutput, _of_output),
    (Term, _of_term),
    (Mapping, _of_mapping),
    (list | tuple, _of_several),
)
