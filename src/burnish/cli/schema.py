"""The JSON Schema of a run file, made of the dataclass fields of each method's configuration.

`python -m burnish.cli.schema` writes schema.json, which help, `init` and `check` read instead of importing torch.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Union

from burnish.advantages import advantages
from burnish.cli.methods import METHODS, Method, load
from burnish.data.prompt_rows import RESERVED_COLUMNS
from burnish.data.sources import FILE_KINDS
from burnish.importance import importance_corrections
from burnish.losses import divergences, kl_estimators
from burnish.losses.policy import RATIO_LEVELS
from burnish.models.adapters import OTHERS_BECAUSE, PLAIN_LORA, SUPPORTED
from burnish.models.embedded import EMBEDDED
from burnish.registry import Entry, Table
from burnish.rewards.catalog import reward_functions
from burnish.rewards.choices import ISOLATIONS, POLICIES
from burnish.trainers.config import CHOICES, REFUSED
from burnish.trainers.online import OnlineTrainer
from burnish.trainers.ppo_options import CRITICS, REWARD_SCALINGS
from burnish.trainers.ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, is_known, ranges_of
from burnish.trainers.rollout_options import RolloutOptions

SCHEMA_PATH = Path(__file__).with_name("schema.json")
REGENERATE = "python -m burnish.cli.schema"

# Fields of adapters that only say more about what is not supported.
UNREAD_ADAPTER_FIELDS = {
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "megatron_core",
    "runtime_config",
}  # fmt: skip
# Options that name a function, or a setting -> what they may be.
NAMED: Mapping[str, Iterable[Any]] = {
    "f_divergence_type": divergences,
    "advantage": advantages,
    "kl_estimator": kl_estimators,
    "importance_sampling_mode": importance_corrections,
    "importance_sampling_level": (*RATIO_LEVELS, None),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "reward_isolation": ISOLATIONS,
    "on_reward_error": POLICIES,
    "reward_scaling": REWARD_SCALINGS,
    "critic": CRITICS,
}
# Those of them that a function of the user's may take the place of, as module:function.
TAKE_FUNCTIONS = ("advantage", "kl_estimator", "f_divergence_type", "importance_sampling_mode")

_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    types.NoneType: {"type": "null"},
    Any: {},
}


def make_schema() -> dict[str, Any]:
    """The schema of a run file of any method."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Burnish run file",
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "data"],
        "properties": {**_top_level(), "training": {"type": "object", "description": "Options of the method."}},
        "allOf": [
            {
                "if": {"properties": {"method": {"const": name}}, "required": ["method"] if index else []},
                "then": {"properties": {"training": {"$ref": f"#/$defs/{name}"}}},
            }
            for index, name in enumerate(METHODS)  # the first one is meant where the key is not there
        ],
        "$defs": {name: training_of(method) for name, method in METHODS.items()},
        "x-models": sorted(EMBEDDED),
        "x-rewards": {name: _reward(reward_functions[name].function) for name in sorted(reward_functions)},
        "x-peft": {kind.lower(): _adapter(kind) for kind in SUPPORTED},
        "x-peft-refused": {kind.lower(): reason for kind, reason in OTHERS_BECAUSE.items()},
        "x-file-kinds": list(FILE_KINDS),
        "x-versions": {name: version(name) for name in ("transformers", "peft")},
    }


def _reward(function: Callable[..., Any]) -> dict[str, list[str]]:
    """What a built-in reward cannot do without: columns of the data set, and settings."""
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return {
        "columns": [p.name for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in RESERVED_COLUMNS],
        "settings": [p.name for p in needed if p.kind is p.KEYWORD_ONLY],
    }


FUNCTION = {"type": "string", "pattern": r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"}
_TEXT, _COUNT, _NOTHING = {"type": "string", "minLength": 1}, {"type": "integer"}, {"type": "null"}


def _top_level() -> dict[str, Any]:
    return {
        "method": {
            "anyOf": [{"enum": list(METHODS)}, {**FUNCTION, "x-form": "a trainer of your own as module:Trainer"}],
            "default": next(iter(METHODS)),
            "description": "How to train: a name, or module:Trainer.",
        },
        "import_from": {
            "anyOf": [_TEXT, _NOTHING],
            "default": None,
            "description": "Where modules that this file names are looked for first; unset, where the file is.",
        },
        "model": {**_TEXT, "description": "What is trained: a short name, a path, a .gguf file, or a name on the hub."},
        "ref_model": {
            "anyOf": [_TEXT, _NOTHING],
            "default": None,
            "description": "The reference policy; unset, the policy as it is before training.",
        },
        "peft": {
            "anyOf": [{"type": "object"}, _NOTHING],
            "default": None,
            "description": "An adapter to train instead of the whole model: its type, lora if unset, and its fields.",
        },
        "rewards": {
            "anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _TEXT}, _NOTHING],
            "default": None,
            "description": "What scores the answers: names of built-in rewards, module:function, or sequence "
            "classifiers; for methods that draw their own answers.",
        },
        "data": _data(),
        "samples": {
            **_COUNT,
            **NOT_NEGATIVE,
            "default": 3,
            "description": "So many held-out prompts are answered greedily before and after training; a reward model "
            "scores the answers of so many rows.",
        },
        "max_new_tokens": {
            **_COUNT,
            **AT_LEAST_ONE,
            "default": 80,
            "description": "Longest such answer in tokens.",
        },
    }


def _data() -> dict[str, Any]:
    source = "a path, recipe:NAME, or the name of a data set on the hub"
    sources = {"type": "object", "minProperties": 1, "additionalProperties": _TEXT}
    weighted = {
        "type": "object",
        "additionalProperties": False,
        "required": ["path"],
        "properties": {
            "path": {**_TEXT, "description": f"{source[0].upper()}{source[1:]}."},
            "name": {**_TEXT, "description": "What it is called in metrics; unset, what its path ends in."},
            "weight": {"type": "number", **POSITIVE, "description": "How much of an epoch it is; of all or of none."},
        },
    }
    properties = {
        "train": {
            "anyOf": [_TEXT, sources, {"type": "array", "minItems": 1, "items": weighted}],
            "description": f"Rows to train on: {source}; or names with one of these each, or a list of path, name and "
            "weight, which are mixed.",
        },
        "streaming": {
            "type": "boolean",
            "default": False,
            "description": "Read the rows of train as they are needed, once, in order; needs max_steps.",
        },
        "eval": {
            "anyOf": [_TEXT, sources, _NOTHING],
            "default": None,
            "description": f"Rows held out: {source}; or names with one of these each.",
        },
        "eval_rows": {
            "anyOf": [{**_COUNT, **AT_LEAST_ONE}, _NOTHING],
            "default": None,
            "description": "Hold out so many rows of train, drawn by the seed; instead of eval.",
        },
    }
    return {
        "type": "object",
        "description": "Where the rows come from.",
        "additionalProperties": False,
        "required": ["train"],
        "properties": properties,
    }


def facts_of(trainer: Any) -> dict[str, Any]:
    """What commands ask about a method, read off its trainer; see `Method`."""
    return {
        "reads": trainer.config_class.row_kind,
        "draws_answers": issubclass(trainer, OnlineTrainer),
        "writes_answers": trainer.writes_answers,
        "takes_reference": "ref_model" in _keywords(trainer)
        and (not issubclass(trainer, OnlineTrainer) or trainer.reads_reference),
    }


def _keywords(trainer: type) -> set[str]:
    """What the constructor takes: of each class in turn, as long as it hands the rest on to the next one."""
    found: set[str] = set()
    for base in trainer.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        found |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def training_of(method: Method) -> dict[str, Any]:
    """The schema of `training` for a method, the library's or a user's."""
    config, trainer = load(method)
    hints = typing.get_type_hints(config)
    options, ranges = [item for item in fields(config) if item.init], ranges_of(config)
    properties = {
        item.name: _option(item, hints[item.name], ranges) if is_known(item.name, config) else _own_option(item, hints)
        for item in options
    }
    losses: Any = {} if trainer.loss_table is None else trainer.loss_table
    if losses and "loss_type" in properties:
        properties["loss_type"] |= _loss_type(losses, several=isinstance(properties["loss_type"]["default"], list))
    if issubclass(config, RolloutOptions):
        properties["num_generations"]["minimum"] = config.fewest_generations
    if "judge" in properties:
        properties["judge"] |= {"anyOf": [FUNCTION, _NOTHING]}
    own = [item for item in inspect.get_annotations(config) if item in properties]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        **({"x-own": own} if method.name not in METHODS else {}),
        "x-facts": facts_of(trainer),
        "x-unbuilt": {name: list(values) for name, values in vars(config).get("unbuilt", {}).items()},
        "x-reference-free": [name for name in losses if losses[name].facts.get("reference") == "none"],
        "x-reference-ratios": [name for name in losses if losses[name].facts.get("reference") == "ratios"],
        "x-couples-rows": [name for name in losses if losses[name].facts.get("couples_rows")],
        "x-corrections": {name: _token_corrections() for name in losses if _corrects_itself(losses[name])},
        "x-losses": {name: sorted(losses[name].hyper_parameters) for name in losses},
    }


def _corrects_itself(loss: Entry[..., Any]) -> bool:
    """The loss multiplies the sampler's weights up itself, so that it takes those of single tokens alone."""
    return loss.facts.get("correction") == "inside"


def _token_corrections() -> list[str]:
    return [name for name in importance_corrections if importance_corrections[name].facts["level"] == "token"]


def _adapter(kind: str) -> dict[str, Any]:
    """The fields of PEFT's configuration of one kind of adapter, with their types where YAML knows them."""
    import peft

    config: Any = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]
    left_out = {item.name for item in fields(peft.PeftConfig)} | UNREAD_ADAPTER_FIELDS
    left_out |= PLAIN_LORA.keys() - {"init_lora_weights"}
    hints = typing.get_type_hints(config)
    properties = {item.name: _known_type(hints[item.name]) for item in fields(config) if item.name not in left_out}
    if "init_lora_weights" in properties:
        properties["init_lora_weights"] = {"enum": list(PLAIN_LORA["init_lora_weights"])}
    return {"type": "object", "properties": properties}


def _known_type(annotation: Any) -> dict[str, Any]:
    """{} for what YAML has no type for. Sorted, since equal unions share the order of the one that came first."""
    try:
        kind = type_schema(annotation)
    except TypeError:
        return {}
    return {"anyOf": sorted(kind["anyOf"], key=json.dumps)} if "anyOf" in kind else kind


def _described(field: Field[Any]) -> dict[str, Any]:
    default = field.default if field.default is not MISSING else field.default_factory()  # pyright: ignore[reportCallIssue]
    return {"default": default, "description": " ".join(field.metadata.get("help", "").replace("%%", "%").split())}


def _own_option(field: Field[Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Type, default and sentence of an option that a user adds; of a type that YAML does not know, any value."""
    return {**_known_type(hints[field.name]), **_described(field)}


def _option(field: Field[Any], annotation: Any, ranges: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Type, range, default and sentence of one option; for a refused one, what is left of it and why."""
    described = _described(field)
    if field.name in REFUSED:
        allowed, reason = REFUSED[field.name]
        return {"enum": list(dict.fromkeys(allowed)), "x-refused": reason, **described}
    if field.name in CHOICES:
        return {"enum": list(CHOICES[field.name]), **described}
    if field.name in NAMED:
        names = {"enum": list(NAMED[field.name])}
        return {**({"anyOf": [names, FUNCTION]} if field.name in TAKE_FUNCTIONS else names), **described}
    kind = type_schema(annotation)
    for variant in kind.get("anyOf", [kind]):
        if variant.get("type") in ("integer", "number"):
            variant.update(ranges.get(field.name, {}))
    return {**kind, **described}


def type_schema(annotation: Any) -> dict[str, Any]:
    """The values that YAML may give for a type. A union with an enum takes the enum's values, not any text.

    >>> type_schema(int | None)
    {'anyOf': [{'type': 'integer'}, {'type': 'null'}]}
    """
    if annotation in _SIMPLE:
        return dict(_SIMPLE[annotation])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return {"enum": [member.value for member in annotation]}
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return _union([item for item in inner if not is_dataclass(item)])
    if origin is list or annotation is list:
        return {"type": "array", **({"items": type_schema(inner[0])} if inner else {})}
    if origin is dict or annotation is dict:
        values = type_schema(inner[1]) if inner else {}
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    raise TypeError(f"no schema for an option of type {annotation}; allowed: plain types, enums, lists, dicts, unions")


def _union(members: list[Any]) -> dict[str, Any]:
    if any(isinstance(item, type) and issubclass(item, Enum) for item in members):
        members = [item for item in members if item is not str]
    variants = [type_schema(item) for item in members]
    return variants[0] if len(variants) == 1 else {"anyOf": variants}


def _loss_type(losses: Table[..., Any], *, several: bool) -> dict[str, Any]:
    names = {"enum": list(losses)}
    many = [{"type": "array", "minItems": 1, "items": {"anyOf": [names, FUNCTION]}}] if several else []
    return {
        "anyOf": [names, FUNCTION, *many],
        "description": f"Name of a {losses.kind}, module:function{', or a list of them' if several else ''}.",
    }


def schema_text() -> str:
    """schema.json as it should be."""
    return json.dumps(make_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {SCHEMA_PATH}")
