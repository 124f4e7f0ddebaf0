"""The ranges of numbers among the options, in a run file and in Python, in the words of JSON Schema."""

from __future__ import annotations

import inspect
import operator
import typing
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from transformers import TrainingArguments

POSITIVE, NOT_NEGATIVE, AT_LEAST_ONE = {"exclusiveMinimum": 0}, {"minimum": 0}, {"minimum": 1}
UNIT = {"minimum": 0, "maximum": 1}
SHARE = {"minimum": 0, "exclusiveMaximum": 1}
# One name has one range, whatever the method is.
RANGES: Mapping[str, Mapping[str, float]] = {
    "beta": POSITIVE,
    "label_smoothing": {"minimum": 0, "exclusiveMaximum": 0.5},
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "max_steps": {"minimum": -1},
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "save_steps": POSITIVE,
    "save_total_limit": AT_LEAST_ONE,
    "seed": NOT_NEGATIVE,
    "data_seed": NOT_NEGATIVE,
    "max_skipped_steps": AT_LEAST_ONE,
    "shuffle_buffer_size": {"minimum": 2},
    "ref_model_mixup_alpha": {"exclusiveMinimum": 0, "maximum": 1},
    **dict.fromkeys(("ref_model_sync_steps", "precompute_ref_batch_size", "pad_to_multiple_of"), AT_LEAST_ONE),
    "ld_alpha": UNIT,
    "discopop_tau": POSITIVE,
    "token_budget": NOT_NEGATIVE,
    **dict.fromkeys(("num_iterations", "steps_per_generation", "generation_batch_size"), AT_LEAST_ONE),
    **dict.fromkeys(("temperature", "reward_timeout", "off_policy_mask_threshold", "repetition_penalty"), POSITIVE),
    **dict.fromkeys(("dynamic_sampling_attempts", "num_completions_to_print", "generation_max_rows"), AT_LEAST_ONE),
    "top_entropy_quantile": {"exclusiveMinimum": 0, "maximum": 1},
    "entropy_coef": NOT_NEGATIVE,
    **dict.fromkeys(("epsilon", "epsilon_high", "top_k", "reward_retries", "num_generations_eval"), NOT_NEGATIVE),
    "center_rewards_coefficient": NOT_NEGATIVE,
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), POSITIVE),
    **dict.fromkeys(("kl_coef", "vf_coef", "ptx_coef", "critic_learning_rate", "critic_weight_decay"), NOT_NEGATIVE),
    **dict.fromkeys(("kl_target", "kl_horizon", "early_stop_kl", "lam_length_alpha", "reward_clip"), POSITIVE),
    **dict.fromkeys(("advantage_clip", "cliprange_value", "critic_max_grad_norm"), POSITIVE),
    **dict.fromkeys(("lam", "lam_critic", "critic_warmup_lam"), UNIT),
    **dict.fromkeys(("num_mini_batches", "total_episodes", "ptx_batch_size", "ptx_max_length"), AT_LEAST_ONE),
    "gamma": {"exclusiveMinimum": 0, "maximum": 1},
    "critic_warmup_steps": NOT_NEGATIVE,
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), AT_LEAST_ONE),
    **dict.fromkeys(("gradient_accumulation_steps", "dataset_num_proc", "torch_empty_cache_steps"), AT_LEAST_ONE),
    "max_length": {"minimum": 2},
    **dict.fromkeys(("max_prompt_length", "max_completion_length"), AT_LEAST_ONE),
    **dict.fromkeys(("num_eval_samples", "eval_max_new_tokens"), AT_LEAST_ONE),
    **dict.fromkeys(("dataloader_num_workers", "eval_temperature"), NOT_NEGATIVE),
}
_HOLDS = {
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
}


def check_ranges(options: TrainingArguments) -> None:
    """Every number among the options lies in its range, and is a whole one where only those go.

    Raises:
        ValueError: one is not, NaN among them.
    """
    whole = _whole(type(options))
    for name, bounds in ranges_of(type(options)).items():
        value = vars(options)[name]
        if not isinstance(value, int | float):  # unset, or text that names a choice
            continue
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if (name in whole and not is_whole) or not all(_HOLDS[word](value, limit) for word, limit in bounds.items()):
            raise ValueError(f"{name}={value!r}; allowed: {in_words(bounds, whole=name in whole)}")


@cache
def ranges_of(config: type[TrainingArguments]) -> Mapping[str, Mapping[str, float]]:
    """Option -> its range, of those of a configuration class that have one.

    An option that is off by default may be 0 also where another method's may not.
    """
    found = {item.name: RANGES[item.name] for item in fields(config) if item.name in RANGES}
    found = {name: bounds for name, bounds in found.items() if is_known(name, config)}
    is_off = {item.name for item in fields(config) if item.default == 0}
    return {name: NOT_NEGATIVE if bounds == POSITIVE and name in is_off else bounds for name, bounds in found.items()}


def is_known(name: str, config: type) -> bool:
    """An option of the library's or of transformers', and none that a user's configuration adds."""
    return any(name in inspect.get_annotations(base) for base in _library(config))


def in_words(bounds: Mapping[str, float], *, whole: bool = False) -> str:
    """A range for people.

    >>> in_words({"minimum": 0, "exclusiveMaximum": 0.5})
    '0 up to, but not including, 0.5'
    >>> in_words({"exclusiveMinimum": 0})
    'above 0'
    >>> in_words({"minimum": 1}, whole=True)
    'whole numbers from 1'
    """
    low = f"above {bounds['exclusiveMinimum']}" if "exclusiveMinimum" in bounds else f"{bounds['minimum']}"
    if "maximum" in bounds:
        return f"{low} {'up to' if low.startswith('above') else 'to'} {bounds['maximum']}"
    if "exclusiveMaximum" in bounds:
        return f"{low} up to, but not including, {bounds['exclusiveMaximum']}"
    if low.startswith("above"):
        return low
    return f"whole numbers from {low}" if whole else f"{low} or more"


@cache
def _whole(config: type[TrainingArguments]) -> frozenset[str]:
    """The options with a range that are whole numbers."""
    hints: dict[str, Any] = {}
    for base in reversed(_library(config)):
        hints |= typing.get_type_hints(base)
    kinds = {name: set(typing.get_args(hints[name]) or (hints[name],)) for name in ranges_of(config)}
    return frozenset(name for name, kind in kinds.items() if int in kind and float not in kind)


def _library(config: type) -> list[type]:
    """The classes of a configuration that are not a user's own."""
    return [base for base in config.__mro__ if base.__module__.split(".")[0] in ("burnish", "transformers")]
