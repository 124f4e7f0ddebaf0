"""The only place that looks at versions of other libraries, and at TRL's names.

TRL's configuration classes have options that Burnish does not have yet. Set to TRL's default they change nothing and
are accepted, so that a script runs after its import line is changed; set to anything else they are refused by name.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, TypeVar

from burnish.registry import closest

Config = TypeVar("Config")
MINIMUM_TRANSFORMERS = (5, 19)

# Field of TRL 1.16 or 0.25 -> the values that mean "off".
UNBUILT_DPO: dict[str, tuple[Any, ...]] = {
    "padding_free": (False,),
    "activation_offloading": (False,),
    "use_logits_to_keep": (False,),
    "label_pad_token_id": (-100,),
    "padding_value": (None,),
    "tools": (None,),
    "use_liger_loss": (None, False),
    "base_model_attribute_name": ("model",),
    "pad_token": (None,),
}
# Fields of TRL's ModelConfig and ScriptArguments -> where they are in a run file.
MODEL_CONFIG_FIELDS = {
    "use_peft": "peft",
    "lora_r": "peft.r",
    "lora_alpha": "peft.lora_alpha",
    "lora_dropout": "peft.lora_dropout",
    "lora_target_modules": "peft.target_modules",
    "lora_target_parameters": "peft.target_parameters",
    "lora_modules_to_save": "peft.modules_to_save",
    "lora_task_type": "peft",
    "use_rslora": "peft.use_rslora",
    "use_dora": "peft.use_dora",
    "load_in_4bit": "training.model_init_kwargs.quantization_config",
    "load_in_8bit": "training.model_init_kwargs.quantization_config",
    "bnb_4bit_quant_type": "training.model_init_kwargs.quantization_config",
    "use_bnb_nested_quant": "training.model_init_kwargs.quantization_config",
    "model_name_or_path": "model",
    "dataset_name": "data.train",
    "dataset_streaming": "data.streaming",
    "model_revision": "training.model_init_kwargs.revision",
    "attn_implementation": "training.model_init_kwargs.attn_implementation",
    "dtype": "training.model_init_kwargs.dtype",
}
UNBUILT_REWARD: dict[str, tuple[Any, ...]] = {
    "activation_offloading": (False,),
    "chat_template_path": (None,),
    "eos_token": (None,),
}
UNBUILT_SFT: dict[str, tuple[Any, ...]] = {
    "packing": (False, True),  # both: rows are never padded against each other where that saves anything
    "padding_free": (False, True),
    "eval_packing": (None, False, True),
    "packing_strategy": ("bfd",),
    "dataset_text_field": ("text",),
    "dataset_kwargs": (None, {}),
    "shuffle_dataset": (False, True),  # every epoch has an order of its own anyway
    "chat_template_path": (None,),
    "eos_token": (None,),
    "pad_token": (None,),
    "activation_offloading": (False,),
}
# Arguments of TRL's SFTTrainer -> the values that mean "off".
UNBUILT_SFT_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "formatting_func": (None,),
    "compute_metrics": (None,),
    "compute_loss_func": (None,),
    "preprocess_logits_for_metrics": (None,),
    "optimizer_cls_and_kwargs": (None,),
}
UNBUILT_KTO: dict[str, tuple[Any, ...]] = {
    "activation_offloading": (False,),
    "is_encoder_decoder": (None, False),
    "use_liger_loss": (None, False),
    "generate_during_eval": (False,),
    "base_model_attribute_name": ("model",),
    "label_pad_token_id": (-100,),
    "padding_value": (None,),
}
UNBUILT_GRPO: dict[str, tuple[Any, ...]] = {
    "use_vllm": (False,),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm",),
    "vllm_enable_sleep_mode": (False,),
    "vllm_structured_outputs_regex": (None,),
    "vllm_guided_decoding_regex": (None,),
    "vllm_server_base_url": (None,),
    "vllm_server_host": ("0.0.0.0",),
    "vllm_server_port": (8000,),
    "vllm_server_timeout": (240.0, 240),
    "vllm_group_port": (51216,),
    "vllm_gpu_memory_utilization": (0.3,),
    "vllm_tensor_parallel_size": (1,),
    "vllm_max_model_length": (None,),
    "use_transformers_paged": (False,),
    "use_transformers_continuous_batching": (False,),
    "transformers_continuous_batching_config": (None,),
    "cache_implementation": (None,),
    "generation_kwargs": (None,),
    "ds3_gather_for_generation": (True,),
    "use_liger_loss": (None, False),
    "cast_lm_head_to_fp32": (False,),
    "log_unique_prompts": (False,),
    "wandb_log_unique_prompts": (False, None),
    "log_multimodal": (True,),
    "log_completions_hub_repo": (None,),
    "max_tool_calling_iterations": (None,),
}
# Arguments of TRL's GRPOTrainer -> the values that mean "off".
UNBUILT_GRPO_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "tools": (None,),
    "environment_factory": (None,),
    "rollout_func": (None,),
}
# Options of TRL's GRPOConfig whose meaning is not bound to one engine here.
GRPO_ALIASES = {
    "vllm_importance_sampling_correction": "importance_sampling_correction",
    "vllm_importance_sampling_mode": "importance_sampling_mode",
    "vllm_importance_sampling_clip_max": "importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min": "importance_sampling_clip_min",
    "vllm_importance_sampling_cap": "importance_sampling_clip_max",
}
UNSET_BY_NONE = frozenset({"vllm_importance_sampling_cap"})  # aliases whose None means that they are not given
# Options of TRL's PPOConfig, of its last version and of the one with a step of its own, under their names here.
PPO_ALIASES = {
    "num_ppo_epochs": "num_iterations",
    "ppo_epochs": "num_iterations",
    "response_length": "max_completion_length",
    "cliprange": "epsilon",
    "local_rollout_forward_batch_size": "generation_max_rows",
    "init_kl_coef": "kl_coef",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "score_clip": "reward_clip",
}
UNBUILT_PPO: dict[str, tuple[Any, ...]] = {
    "num_sample_generations": (10, 0),
    "exp_name": ("ppo_config", "ppo"),
    "ds3_gather_for_generation": (True,),
    "num_total_batches": (None,),
    "micro_batch_size": (None,),
    "local_batch_size": (None,),
    "batch_size": (None,),
    "local_mini_batch_size": (None,),
    "mini_batch_size": (None,),
}
# Names of losses in other versions of TRL -> ours.
LOSS_ALIASES = {"aot_pair": "aot_unpaired"}


def check_versions() -> None:
    """Refuse a transformers that is too old for `loss_is_scaled_for_ga`.

    Raises:
        ImportError: with the version found and the one needed.
    """
    found = version("transformers")
    if tuple(int(part) for part in found.split(".")[:2]) < MINIMUM_TRANSFORMERS:
        needed = ".".join(map(str, MINIMUM_TRANSFORMERS))
        raise ImportError(f"Burnish needs transformers >= {needed}, found {found}: pip install -U transformers")


def resolve_checkpointing(config: Any, *, default: bool) -> None:
    """Settle activation checkpointing, which transformers 5.23 renamed, under whichever names there are."""
    names = [n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(config, n)]
    given = [getattr(config, name) for name in names if getattr(config, name) is not None]
    keywords = [kwargs for name in names if (kwargs := getattr(config, f"{name}_kwargs", None))]
    for name in names:
        setattr(config, name, given[0] if given else default)
        if keywords and isinstance(keywords[0], Mapping):  # torch asks for use_reentrant wherever there is another
            setattr(config, f"{name}_kwargs", {"use_reentrant": False, **keywords[0]})


def accept_trl_fields(
    unbuilt: Mapping[str, tuple[Any, ...]],
    *,
    aliases: Mapping[str, str] = MappingProxyType({}),
    unset_by_none: frozenset[str] = frozenset(),
) -> Callable[[type[Config]], type[Config]]:
    """Class decorator for a config dataclass: take `unbuilt` options at their default, refuse them otherwise.

    An option under its name in `aliases` is taken as the one that it stands for; both at once are refused. What is
    set on an instance is treated the same; what is read of an unbuilt option is its default. The class keeps them as
    `unbuilt`.
    """

    def decorate(cls: type[Config]) -> type[Config]:
        own_init, own_setattr = cls.__init__, cls.__setattr__

        @functools.wraps(own_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in [name for name in kwargs if name in unbuilt]:
                refuse_unbuilt(name, kwargs.pop(name), unbuilt)
            for name in [name for name in unset_by_none if name in kwargs and kwargs[name] is None]:
                del kwargs[name]
            for name in [name for name in kwargs if name in aliases]:
                if aliases[name] in kwargs:
                    raise TypeError(f"{name} and {aliases[name]} are one option: set {aliases[name]} alone")
                kwargs[aliases[name]] = kwargs.pop(name)
            known = {field.name for field in fields(cls)}  # pyright: ignore[reportArgumentType]
            if unknown := [name for name in kwargs if name not in known]:
                hints = "; ".join(f"{name!r}{closest(name, known) or ' is unknown'}" for name in unknown)
                raise TypeError(f"{cls.__name__} has no option {hints}")
            own_init(self, *args, **kwargs)

        def __setattr__(self: Any, name: str, value: Any) -> None:
            if name in unbuilt:
                refuse_unbuilt(name, value, unbuilt)
            own_setattr(self, aliases.get(name, name), value)

        cls.__init__, cls.__setattr__ = __init__, __setattr__
        cls.unbuilt = unbuilt  # pyright: ignore[reportAttributeAccessIssue]
        for name, off in unbuilt.items():
            setattr(cls, name, off[0])
        for name, own in aliases.items():
            setattr(cls, name, property(operator.attrgetter(own)))
        _name_flags(cls, aliases)
        return cls

    return decorate


def _name_flags(cls: Any, aliases: Mapping[str, str]) -> None:
    """Let HfArgumentParser know an option under its other names."""
    for own in set(aliases.values()):
        field = copy.copy(cls.__dataclass_fields__[own])  # an inherited one belongs to its class
        flags = [f"--{name}" for name, target in aliases.items() if target == own]
        field.metadata = MappingProxyType({**field.metadata, "aliases": flags})
        cls.__dataclass_fields__[own] = field


def refuse_unbuilt(name: str, value: Any, unbuilt: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError if an option that is not built yet is switched on."""
    if value not in unbuilt[name]:
        raise ValueError(
            f"{name}={value!r} is an option of TRL that Burnish has not built yet. "
            f"Remove it (that is {name}={unbuilt[name][0]!r}); docs/limits.md lists what is missing."
        )
