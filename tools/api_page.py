"""The blocks of docs/api.md, every public name for mkdocstrings, and of the glossary, every parcel with its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass

import burnish
import burnish.testing
from burnish import types
from burnish.report.parcels import letters_of


def _is_trainer(name: str) -> bool:
    return name.endswith(("Trainer", "Config"))


def _is_parcel(name: str) -> bool:
    return burnish._HOME[name] == "burnish.types"


def _is_seam(name: str) -> bool:
    return not _is_trainer(name) and not _is_parcel(name)


PARTS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("Trainers and their options", _is_trainer),
    ("Seams: what is registered, called or passed in", _is_seam),
    ("Parcels", _is_parcel),
)


def api_page() -> str:
    """Headings, and a directive of mkdocstrings for each name."""
    lines: list[str] = []
    for heading, belongs in PARTS:
        lines += [f"## {heading}", *(_directive(f"burnish.{name}") for name in burnish.__all__ if belongs(name))]
    lines += ["## Contracts", *(_directive(f"burnish.testing.{name}") for name in burnish.testing.__all__)]
    return "\n\n".join(lines)


def _directive(name: str) -> str:
    """A class of options is shown with its fields, whose sentences are in their defaults."""
    options = "\n    options: {show_if_no_docstring: true}" if name.endswith("Config") else ""
    return f"::: {name}{options}"


def parcels_table() -> str:
    """Every parcel with what it is and its fields, with their letters."""
    rows = ["| parcel | what it is | fields |", "|---|---|---|"]
    for name in types.__all__:
        parcel = vars(types)[name]
        if inspect.isclass(parcel) and is_dataclass(parcel):
            own = [_field(part.name, letters_of(part.type)) for part in fields(parcel) if part.name in _own(parcel)]
            rows.append(f"| `{name}` | {(inspect.getdoc(parcel) or '').partition(chr(10))[0]} | {', '.join(own)} |")
    return "\n".join(rows)


def _own(parcel: type) -> set[str]:
    """Fields that no base has."""
    return set(vars(parcel).get("__annotations__", ()))


def _field(name: str, letters: str) -> str:
    return f"`{name}` ({', '.join(letters.split())})" if letters else f"`{name}`"
