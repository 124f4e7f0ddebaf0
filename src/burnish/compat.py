"""The only place that looks at versions of other libraries, and at TRL's names.

TRL's configuration classes have options that Burnish does not have yet. Set to TRL's default they change nothing and
are accepted, so that a script runs after its import line is changed; set to anything else they are refused by name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import version
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
# Fields of TRL's ModelConfig -> where they are in a run file.
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
    "model_revision": "training.model_init_kwargs.revision",
    "attn_implementation": "training.model_init_kwargs.attn_implementation",
    "dtype": "training.model_init_kwargs.dtype",
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


def accept_trl_fields(unbuilt: Mapping[str, tuple[Any, ...]]) -> Callable[[type[Config]], type[Config]]:
    """Class decorator for a config dataclass: take `unbuilt` options at their default, refuse them otherwise."""

    def decorate(cls: type[Config]) -> type[Config]:
        own_init = cls.__init__

        @functools.wraps(own_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for name in [name for name in kwargs if name in unbuilt]:
                refuse_unbuilt(name, kwargs.pop(name), unbuilt)
            known = {field.name for field in fields(cls)}  # pyright: ignore[reportArgumentType]
            if unknown := [name for name in kwargs if name not in known]:
                hints = "; ".join(f"{name!r}{closest(name, known) or ' is unknown'}" for name in unknown)
                raise TypeError(f"{cls.__name__} has no option {hints}")
            own_init(self, *args, **kwargs)

        cls.__init__ = __init__
        return cls

    return decorate


def refuse_unbuilt(name: str, value: Any, unbuilt: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError if an option that is not built yet is switched on."""
    if value not in unbuilt[name]:
        raise ValueError(
            f"{name}={value!r} is an option of TRL that Burnish has not built yet. "
            f"Remove it (that is {name}={unbuilt[name][0]!r}); docs/limits.md lists what is missing."
        )
