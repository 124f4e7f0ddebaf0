"""The commented run file that `burnish init` prints, made of schema.json."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from burnish.cli.methods import find, unread_keys
from burnish.cli.validate import MAX_SHOWN_CHOICES, is_function_name, load_schema, own_method_problem, training_schema
from burnish.registry import closest

WIDTH = 100
EXAMPLES: dict[str, dict[str, Any]] = {
    "ppo": {
        "model": "smollm2-135m",
        "train": "recipe:sums-train",
        "eval": "recipe:sums-heldout",
        "rewards": "number",
    },
    "dpo": {"model": "smollm2-135m", "train": "recipe:spoken-train", "eval": "recipe:spoken-heldout"},
    "grpo": {
        "model": "smollm2-135m",
        "train": "recipe:sums-train",
        "eval": "recipe:sums-heldout",
        "rewards": "number",
    },
    "reward": {"model": "smollm2-135m", "train": "recipe:spoken-train", "eval": "recipe:spoken-heldout"},
    "sft": {"model": "smollm2-135m", "train": "recipe:spoken-train", "eval": "recipe:spoken-heldout"},
    "kto": {"model": "smollm2-135m", "train": "recipe:spoken-train", "eval": "recipe:spoken-heldout"},
}
OF_METHOD: dict[str, tuple[str, ...]] = {
    "dpo": ("loss_type", "beta", "label_smoothing", "max_length"),
    "ppo": (
        "kl_coef",
        "kl_target",
        "num_iterations",
        "num_mini_batches",
        "max_completion_length",
        "temperature",
        "epsilon",
        "gamma",
        "lam",
        "critic",
        "critic_learning_rate",
        "critic_warmup_steps",
        "vf_coef",
        "cliprange_value",
        "missing_eos_penalty",
    ),
    "grpo": (
        "loss_type",
        "beta",
        "num_generations",
        "steps_per_generation",
        "num_iterations",
        "max_completion_length",
        "temperature",
        "epsilon",
        "advantage",
        "scale_rewards",
        "mask_truncated_completions",
        "dynamic_sampling",
        "on_reward_error",
    ),
    "sft": ("loss_type", "completion_only_loss", "assistant_only_loss", "max_length"),
    "kto": ("loss_type", "beta", "desirable_weight", "undesirable_weight", "max_length"),
    "reward": ("loss_type", "label_smoothing", "center_rewards_coefficient", "margin_from_scores", "max_length"),
}
SELDOM = ("training", "import_from")  # top-level keys: one is below, and one is for files that have moved
ESSENTIAL = (
    "output_dir",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "weight_decay",
    "bf16",
    "seed",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "report_to",
)


def template(method: str, *, every_option: bool = False) -> str:
    """A run file of defaults, each key below its sentence.

    Args:
        method: a method of the schema, or `module:Trainer`.
        every_option: also the options that seldom matter, as comments.

    Raises:
        ValueError: there is no such method.
    """
    schema = load_schema()
    if is_function_name(method) and (problem := own_method_problem(method)) is not None:
        raise ValueError(problem)
    found = find(method)
    if found is None:
        known = ", ".join(schema["$defs"])
        raise ValueError(f"there is no method {method!r}{closest(method, schema['$defs']) or ';'} known: {known}")
    options = training_schema({"method": method})["properties"]
    examples = EXAMPLES.get(method) or EXAMPLES["grpo" if found.draws_answers else "dpo"]
    essential = (*options_of(method), *ESSENTIAL)
    more = "" if every_option else f" The rest: burnish init {method} --all."
    lines = [f"# A run of {method}. Check it: burnish check FILE. Start it: burnish train FILE.{more}"]
    for name, option in schema["properties"].items():
        if name == "data":
            lines += ["", *_comment(option, ""), "data:", *_entries(option["properties"], "  ", examples)]
        elif name not in SELDOM and name not in unread_keys(method):
            lines += ["", *_entry(name, option, "", value=method if name == "method" else examples.get(name))]
    lines += ["", *_comment({"description": "Options of the method; these are the defaults."}, ""), "training:"]
    for name in essential:
        lines += _entry(name, options[name], "  ")
    if every_option:
        lines += ["", "  # Options that seldom matter; remove the # to set one.", ""]
        lines += _rest(options, essential)
    return "\n".join(lines) + "\n"


def options_of(method: str) -> tuple[str, ...]:
    """The options that matter most: of a user's trainer those of its own configuration."""
    return OF_METHOD.get(method) or tuple(training_schema({"method": method})["x-own"])


def shorten(description: str, *, length: int = 160) -> str:
    """The first sentence of a description, and those after it that fit.

    >>> shorten("Peak rate, i.e. the top. Set to 0 to disable. " + "A word. " * 30, length=60)
    'Peak rate, i.e. the top. Set to 0 to disable. A word. A word.'
    """
    sentences = re.split(r"(?<=\.)(?<!i\.e\.)(?<!e\.g\.) (?=[A-Z0-9`'])", description.strip())
    text = sentences[0]
    for sentence in sentences[1:]:
        if len(text) + len(sentence) > length:
            break
        text = f"{text} {sentence}"
    return text


def _entries(options: Mapping[str, Any], indent: str, examples: Mapping[str, Any]) -> Iterator[str]:
    for name, option in options.items():
        yield from _entry(name, option, indent, value=examples.get(name))


def _entry(name: str, option: Mapping[str, Any], indent: str, *, value: Any = None) -> Iterator[str]:
    yield from _comment(option, indent)
    yield f"{indent}{name}: {_scalar(option.get('default') if value is None else value)}"


def _rest(options: Mapping[str, Any], essential: tuple[str, ...]) -> Iterator[str]:
    for name, option in options.items():
        if name not in essential and "x-refused" not in option:
            yield from _comment(option, "  ")
            yield f"  #{name}: {_scalar(option['default'])}"


def _comment(option: Mapping[str, Any], indent: str) -> list[str]:
    text = shorten(option["description"])
    choices = _choices(option)
    if len(choices) > 1 and str(choices[0]) not in text:
        shown = ", ".join(map(str, choices[:MAX_SHOWN_CHOICES]))
        text += f" One of: {shown}{', ...' if len(choices) > MAX_SHOWN_CHOICES else '.'}"
    start = f"{indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _choices(option: Mapping[str, Any]) -> list[Any]:
    return [item for variant in option.get("anyOf", [option]) for item in variant.get("enum", ())]


def _scalar(value: Any) -> str:
    """A value as YAML on one line; plain words without quotes."""
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z][\w:/.-]*", value)
        and value.lower() not in ("true", "false", "null")
    ):
        return value
    return json.dumps(value, ensure_ascii=False)
