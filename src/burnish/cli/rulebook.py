"""Rules between the keys of a run file: how they are written, and the values that they see.

A rule sees each key's value, or its default. It is left out if one of its keys is wrong by itself, or
is no key of the method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from burnish.cli.sources import rewards_of
from burnish.cli.validate import training_schema

Values = Mapping[str, Any]
Check = Callable[[Values], "str | None"]


@dataclass(frozen=True)
class Rule:
    """A check over some keys, of which the first is named in the message."""

    keys: tuple[str, ...]
    check: Check


RULES: list[Rule] = []


def rule(*keys: str) -> Callable[[Check], Check]:
    """Decorator: a check over `keys`, which returns what is wrong or None."""

    def add(check: Check) -> Check:
        RULES.append(Rule(keys, check))
        return check

    return add


def option_values(document: Mapping[str, Any]) -> dict[str, Any]:
    """Each option of `training` by its name, and `data.train` and the like: as it is set, or its default."""
    given = document.get("training")
    training = given if isinstance(given, Mapping) else {}
    data = document.get("data") if isinstance(document.get("data"), Mapping) else {}
    options = training_schema(document)["properties"]
    values: dict[str, Any] = {name: option["default"] for name, option in options.items()}
    values |= {name: value for name, value in training.items() if name in values}
    values |= {"peft": document.get("peft"), "ref_model": document.get("ref_model"), "rewards": rewards_of(document)}
    return values | {f"data.{name}": (data or {}).get(name) for name in ("train", "streaming", "eval", "eval_rows")}


def path_of(key: str) -> tuple[str, ...]:
    """The path of a key as rules name it."""
    return tuple(key.split(".")) if key.startswith("data.") else ("training", key)
