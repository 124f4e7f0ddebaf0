"""What an adapter is, for the console, the manifest, and the settings that bind a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import nn

from burnish.models.adapter_reference import adapter_tensors
from burnish.models.adapters import is_adapted, trained_adapter

if TYPE_CHECKING:
    from peft import PeftConfig

SAYS_NOTHING = ("peft_version", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type")
SHOWN = ("r", "lora_alpha", "target_modules", "target_parameters", "modules_to_save")
DROPOUTS = ("lora_dropout", "rank_dropout", "module_dropout", "vera_dropout")


def describe_adapter(model: Any) -> dict[str, Any] | None:
    """Name, kind, configuration and size of the adapter that is trained, in JSON types; None without adapters.

    `parameters` counts the model and what is trained, without other adapters.
    """
    if not is_adapted(model):
        return None
    name = trained_adapter(model)
    config = model.peft_config[name]
    trainable, total = model.get_nb_trainable_parameters()
    adapters = adapter_tensors(model)
    idle = sum(p.numel() for p in model.parameters() if id(p) in adapters and not p.requires_grad)
    return {
        "name": name,
        "kind": _kind(config),
        "config": plain_config(config),
        "trainable": trainable,
        "parameters": total - idle,
    }


def adapter_line(model: nn.Module) -> str | None:
    """What is trained, in one line; None without adapters."""
    about = describe_adapter(model)
    if about is None:
        return None
    config = about["config"]
    settings = [f"{name} {_listed(config[name])}" for name in SHOWN if config.get(name)]
    is_on = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    off = "" if is_on else ", switched off by disable_dropout"
    settings += [f"{name} {config[name]:g}{off}" for name in DROPOUTS if config.get(name)]
    share = about["trainable"] / about["parameters"]
    trained = f"{about['trainable']:,} of {about['parameters']:,} parameters are trained ({share:.2%})"
    return "; ".join([f"adapter {about['name']}: {about['kind']}", *settings, trained])


def adapter_settings(model: Any) -> dict[str, dict[str, Any]]:
    """The configuration of each adapter of a model, by its name; {} without adapters."""
    return {name: plain_config(config) for name, config in model.peft_config.items()} if is_adapted(model) else {}


def plain_config(config: PeftConfig) -> dict[str, Any]:
    """A PEFT configuration in JSON types, without what says nothing of the adapter itself."""
    return {name: _plain(value) for name, value in config.to_dict().items() if name not in SAYS_NOTHING}


def _kind(config: Any) -> str:
    kind = str(config.peft_type.value)
    if kind != "LORA":
        return kind
    return f"{'DoRA' if config.use_dora else 'LoRA'}{' with rank-stabilised scaling' if config.use_rslora else ''}"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _listed(value: Any) -> str:
    """Modules by the last part of their names, each once."""
    return (
        ", ".join(dict.fromkeys(str(item).rpartition(".")[2] for item in value))
        if isinstance(value, list)
        else str(value)
    )
