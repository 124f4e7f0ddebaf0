"""The rules of methods that draw their own answers; their keys are those of no other method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from burnish.cli.rulebook import Values, path_of, rule
from burnish.cli.validate import Problem, is_function_name
from burnish.rollout.plan import RoundPlan, plan_round
from burnish.trainers.unread import INSTEAD, OF_ROWS, SWITCHES

ROUND_KEYS = (
    "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation",
    "generation_batch_size", "num_iterations",
)  # fmt: skip


def round_of(values: Values) -> RoundPlan:
    """The arithmetic of a round in one process; how small a group may be is in the schema.

    Raises:
        ValueError: numbers that do not divide.
    """
    numbers = {key: values[key] for key in ROUND_KEYS}
    has_size = values["steps_per_generation"] is not None or values["generation_batch_size"] is not None
    if values.get("num_mini_batches", 1) > 1 and not has_size:
        numbers["steps_per_generation"] = values["num_mini_batches"] * values["gradient_accumulation_steps"]
    return plan_round(**numbers, processes=1, fewest_generations=1)


@rule(*ROUND_KEYS)
def _rounds_divide(values: Values) -> str | None:
    try:
        round_of(values)
    except ValueError as error:
        return f"is {values['num_generations']}: {error}"
    return None


@rule("max_completion_length", "num_generations")
def _answers_have_a_limit(values: Values) -> str | None:
    return (
        "is null; an answer needs a limit: a whole number from 1" if values["max_completion_length"] is None else None
    )


@rule("curriculum_window")
def _a_window_has_two_ends(values: Values) -> str | None:
    window = values["curriculum_window"]
    if window is None or (len(window) == 2 and 0 <= window[0] <= window[1] <= 1):
        return None
    return f"is {window}; allowed: two numbers, 0 <= lowest <= highest <= 1"


@rule("dynamic_sampling", "num_generations")
def _groups_to_compare(values: Values) -> str | None:
    is_alone = values["dynamic_sampling"] and values["num_generations"] == 1
    return "compares answers to a prompt, and num_generations is 1: raise it" if is_alone else None


@rule("min_new_tokens", "max_completion_length", "num_generations")
def _answers_may_end(values: Values) -> str | None:
    fewest, most = values["min_new_tokens"], values["max_completion_length"]
    is_beyond = most is not None and fewest > most
    return (
        f"is {fewest}, and max_completion_length is {most}: no answer may be as long, lower it" if is_beyond else None
    )


@rule("eval_greedy", "num_generations_eval")
def _evaluation_has_answers(values: Values) -> str | None:
    is_empty = not values["eval_greedy"] and values["num_generations_eval"] == 0
    return "is false, and num_generations_eval is 0: nothing is left to evaluate, set one of them" if is_empty else None


@rule("delta", "epsilon", "epsilon_high")
def _delta_is_outside_of_the_clip(values: Values) -> str | None:
    delta, high = values["delta"], values["epsilon_high"]
    end = 1 + (values["epsilon"] if high is None else high)
    is_inside = delta is not None and delta <= end
    return (
        f"is {delta}, inside of the clip, which ends at {end:g}: raise it, or leave it at null" if is_inside else None
    )


@rule("multi_objective_aggregation", "advantage")
def _one_advantage(values: Values) -> str | None:
    if values["multi_objective_aggregation"] == "sum_then_normalize" or values["advantage"] in ("group", "gdpo"):
        return None
    return f'is the advantage gdpo, and advantage is "{values["advantage"]}": set one of them'


@rule("entropy_coef", "use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max")
def _the_entropy_starts_within_its_bounds(values: Values) -> str | None:
    smallest, initial, largest = (values[name] for name in ("entropy_coef_min", "entropy_coef", "entropy_coef_max"))
    if not values["use_adaptive_entropy"] or smallest <= initial <= largest:
        return None
    return f"is {initial}, and is moved between entropy_coef_min {smallest} and entropy_coef_max {largest}: start there"


@rule("data.streaming", "num_generations")
def _prompts_are_no_stream(values: Values) -> str | None:
    return "is true, and prompts are drawn from all rows: leave it at false" if values["data.streaming"] else None


@rule("data.train", "num_generations")
def _prompts_come_from_one_source(values: Values) -> str | None:
    is_one = isinstance(values["data.train"], str)
    return None if is_one else "names several sources; several sources of prompts are not built yet: give one"


@rule("reward_weights", "rewards")
def _one_weight_for_each_reward(values: Values) -> str | None:
    weights, rewards = values["reward_weights"], values["rewards"]
    if weights is not None and rewards and len(weights) != len(rewards):
        return f"has {len(weights)} numbers for {len(rewards)} rewards {rewards}: give one for each"
    return None


def rollout_problems(values: Values, schema: Mapping[str, Any], broken: set[str]) -> Iterator[Problem]:
    """Options that nothing reads, and a correction that the loss cannot take."""
    if "num_generations" not in values:
        return
    options = schema["properties"]
    changed = {name for name, option in options.items() if values[name] != option["default"]} - broken
    for name in [name for name in OF_ROWS if name in changed]:
        text = f"is about rows that hold an answer, and these answers are sampled: leave it out; {OF_ROWS[name]}"
        yield Problem(path_of(name), text)
    for name in [name for name, other in INSTEAD.items() if {name, other} <= changed]:
        yield Problem(path_of(INSTEAD[name]), f"has no effect while {name} is {values[name]}: set one of them")
    for switch in [switch for switch in SWITCHES if switch in values]:
        for name in [name for name in SWITCHES[switch] if name in changed and not values[switch]]:
            yield Problem(path_of(name), f"has no effect while {switch} is {values[switch]}: set that, or leave it out")
    fitting = schema["x-corrections"].get(str(values.get("loss_type")))
    mode = values["importance_sampling_mode"]
    if (
        values["importance_sampling_correction"]
        and fitting is not None
        and mode not in fitting
        and not is_function_name(mode)
    ):
        text = f'is "{mode}", which {values["loss_type"]} cannot take: choose {" or ".join(fitting)}'
        yield Problem(path_of("importance_sampling_mode"), text)
