"""What users choose: names, functions, models, options and weights -> what a scorer works with, or a clear error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from burnish.rewards.calling import RewardFunction, name_of, reward_function
from burnish.rewards.catalog import reward_functions
from burnish.rewards.models import ClassifierReward, is_model
from burnish.rewards.worker import Worker, target_of

RewardChoice = str | Callable[..., Any]
ISOLATIONS = ("auto", "process", "none")
POLICIES = ("raise", "unscored")


def check_settings(isolation: str, timeout: float | None, retries: int, on_error: str) -> None:
    """Refuse settings of a scorer that mean nothing.

    Raises:
        ValueError: with what is allowed.
    """
    if isolation not in ISOLATIONS:
        raise ValueError(f"reward_isolation is {isolation!r}; it is one of {', '.join(ISOLATIONS)}")
    if on_error not in POLICIES:
        raise ValueError(f"on_reward_error is {on_error!r}; it is one of {', '.join(POLICIES)}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"reward_timeout is {timeout!r}; it is a number of seconds above 0, or None for no limit")
    if retries < 0:
        raise ValueError(f"reward_retries is {retries!r}; it is 0 or more")


def resolve(
    choices: Sequence[str | Callable[..., Any]], options: Mapping[str, Mapping[str, Any]]
) -> tuple[RewardFunction, ...]:
    """Each with its options and a name of its own: the second `lambda` is `lambda_2`."""
    if not choices:
        raise ValueError("reward_funcs is empty: give at least one name, function or model")
    functions: list[RewardFunction] = []
    plain_names: list[str] = []
    for choice in choices:
        plain_names.append(name_of(choice))
        count = plain_names.count(plain_names[-1])
        name = plain_names[-1] if count == 1 else f"{plain_names[-1]}_{count}"
        functions.append(reward_function(choice, options.get(name), name=name))
    known = [function.name for function in functions]
    if unread := sorted(set(options) - set(known)):
        raise ValueError(f"reward_options has {unread}, and the rewards are {known}: options go by the reward's name")
    return tuple(functions)


def with_models(choices: Sequence[Any], processing_classes: Any) -> list[Any]:
    """The choices, models among them as rewards with their tokenizers."""
    given = processing_classes if isinstance(processing_classes, list | tuple) else [processing_classes]
    given = [None] * len(choices) if processing_classes is None else given
    if len(given) != len(choices):
        raise ValueError(f"reward_processing_classes has {len(given)} entries for {len(choices)} reward functions")
    names = [choice in reward_functions if isinstance(choice, str) else False for choice in choices]
    if unread := [c for c, g, n in zip(choices, given, names, strict=True) if g is not None and (n or not is_model(c))]:
        raise ValueError(
            f"reward_processing_classes has a tokenizer for {unread[0]!r}, which is no model: set None there"
        )
    return [
        ClassifierReward(choice, tokenizer) if is_model(choice) and not named else choice
        for choice, tokenizer, named in zip(choices, given, names, strict=True)
    ]


def workers_of(functions: Sequence[RewardFunction], isolation: str) -> dict[str, Worker]:
    """A worker for each function that gets one; none is started yet."""
    workers: dict[str, Worker] = {}
    for function in functions:
        wished = "process" if function.facts["isolation"] == "process" else isolation
        if function.facts["isolation"] == "none" or wished == "none":
            continue
        target = target_of(function.function, package=function.facts["package"] or "")
        if target is not None:
            workers[function.name] = Worker(target)
        elif isolation == "process":
            raise ValueError(
                f"reward_isolation='process': the reward {function.name!r} cannot be imported by a worker, since it is "
                "no function at the top of a module. Move it to a module beside the script, or set "
                "reward_isolation='auto', which calls it in this process"
            )
    return workers


def weights_of(weights: Sequence[float] | None, names: Sequence[str]) -> tuple[float, ...]:
    """The factor of each reward.

    Raises:
        ValueError: another number of them, or one that is not finite.
    """
    if weights is None:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(f"reward_weights has {len(weights)} numbers for the {len(names)} rewards {list(names)}")
    if bad := [weight for weight in weights if not math.isfinite(weight)]:
        raise ValueError(f"reward_weights has {bad[0]}; each is a finite number")
    return tuple(float(weight) for weight in weights)
