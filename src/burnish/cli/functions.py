"""The functions that a run file names as `module:function`, imported; and options as a configuration takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.cli.methods import is_own, load, method_named
from burnish.cli.validate import Problem, is_function_name
from burnish.runtime.functions import import_function

OF_FUNCTIONS = ("loss_type", "advantage", "kl_estimator", "f_divergence_type", "importance_sampling_mode")


def with_functions(training: Mapping[str, Any]) -> dict[str, Any]:
    """The options with `module:function` replaced by the function."""
    return {name: _imported(value, name) if name in OF_FUNCTIONS else value for name, value in training.items()}


def reward_functions(rewards: Sequence[str]) -> list[Any]:
    """The rewards with `module:function` replaced by the function."""
    return [_imported(reward, "rewards") for reward in rewards]


def named_functions(training: Mapping[str, Any]) -> dict[tuple[str | int, ...], Any]:
    """What stands in the options where a function may be named, by its key."""
    named: dict[tuple[str | int, ...], Any] = {("training", "judge"): training.get("judge")}
    for option in OF_FUNCTIONS:
        given = training.get(option)
        if isinstance(given, list):
            named |= {("training", option, index): item for index, item in enumerate(given)}
        else:
            named["training", option] = given
    return named


def config_problems(document: Mapping[str, Any]) -> list[Problem]:
    """What the configuration of a user's trainer itself says of its options; the library's are checked by rules."""
    name = document.get("method")
    if not is_own(name):
        return []
    make_config, _ = load(method_named(str(name)))
    try:
        make_config(**with_functions(document.get("training") or {}))
    except (ValueError, TypeError, ImportError) as error:
        return [Problem(("training",), f"{make_config.__name__} refuses the options: {error}")]
    return []


def _imported(given: Any, option: str) -> Any:
    if isinstance(given, list):
        return [_imported(item, option) for item in given]
    return import_function(given, option=option) if isinstance(given, str) and is_function_name(given) else given
