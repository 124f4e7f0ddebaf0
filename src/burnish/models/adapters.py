"""Adapters of PEFT on a causal model: which are supported, and making one.

The adapted model is a `PeftModel` around the model, whose linear layers were replaced in place. The base stays frozen,
so that it is also the model as it was.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from burnish.models.introspect import is_quantised, keep_quantised_gradients
from burnish.registry import closest

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel

# Kinds of adapters that leave the model's inputs alone, need nothing at each step, and can be switched off exactly.
SUPPORTED = ("LORA", "LOHA", "LOKR", "IA3", "VERA", "OFT", "HRA", "LN_TUNING", "TRAINABLE_TOKENS")
OTHERS_BECAUSE = {
    "PROMPT_TUNING": "it puts virtual tokens before the prompt",
    "MULTITASK_PROMPT_TUNING": "it puts virtual tokens before the prompt",
    "P_TUNING": "it puts virtual tokens before the prompt",
    "PREFIX_TUNING": "it puts virtual keys and values before the prompt",
    "CPT": "it puts virtual tokens before the prompt",
    "ADAPTION_PROMPT": "it puts virtual tokens before the prompt",
    "ADALORA": "it needs an update of its ranks at each step, and a term of its own in the loss",
}
# Options of LoRA that change the base model, the loss or the call; each with the values that do not.
PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "use_bdlora": (None, False),
    "use_qalora": (False,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
    "megatron_config": (None,),
}
DEFAULT = "default"  # the name that PEFT gives to an adapter


def is_adapted(model: nn.Module) -> bool:
    """The model is a `PeftModel`."""
    return any(cls.__module__ == "peft.peft_model" for cls in type(model).__mro__)


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model: the given one, or that under the adapters, whose layers they are in."""
    return cast("Any", cast("PeftModel", model).get_base_model() if is_adapted(model) else model)


def trained_adapter(model: nn.Module) -> str:
    """The name of the active adapter of a `PeftModel`."""
    return cast("PeftModel", model).active_adapters[0]


def make_config(options: PeftConfig | Mapping[str, Any]) -> PeftConfig:
    """A copy of a PEFT configuration, or the one that a mapping describes: its `type`, lora if unset, and its fields.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: a kind of adapter, a field or a value that is not supported.
        TypeError: neither of the two.
    """
    config: Any
    if isinstance(options, _peft().PeftConfig):
        config = copy.deepcopy(options)  # PEFT writes into it
    elif isinstance(options, Mapping):
        config = _from_mapping(options)
    else:
        raise TypeError(
            f"peft_config is {type(options).__name__}; give a configuration of PEFT such as LoraConfig(r=8), or a "
            'mapping such as {"type": "lora", "r": 8}'
        )
    _check_config(config)
    return config


def _from_mapping(options: Mapping[str, Any]) -> PeftConfig:
    kind = str(options.get("type", "lora"))
    _check_kind(kind.upper(), named=kind)
    config_class: Any = _peft().PEFT_TYPE_TO_CONFIG_MAPPING[kind.upper()]
    given = {str(name): value for name, value in options.items() if name != "type"}
    known = [field.name for field in dataclasses.fields(config_class)]
    if unknown := [name for name in given if name not in known]:
        hints = "; ".join(f"{name!r}{closest(name, known) or ' is unknown'}" for name in unknown)
        raise ValueError(f"peft: {config_class.__name__} has no field {hints}")
    return config_class(**{"task_type": "CAUSAL_LM", **given})


def adapt(
    model: PreTrainedModel | PeftModel,
    peft_config: PeftConfig | Mapping[str, Any] | None,
    *,
    adapter: str | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> PreTrainedModel | PeftModel:
    """The model with a new adapter, or as it is.

    Args:
        model: its layers are replaced in place.
        peft_config: of the new adapter; None for none.
        adapter: the adapter to train: the name of the new one, or of one of several that the model has.
        seed: of the new adapter's random weights; no other randomness is touched.
        revision: of the model on the hub, for the files of the new adapter.

    Raises:
        ValueError: a model that has adapters already, that has none to train, or whose weights are quantised and which
            gets none.
    """
    keep_quantised_gradients(model)
    if is_adapted(model):
        return _checked_given(cast("PeftModel", model), peft_config, adapter)
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has an adapter inside that was added by transformers (add_adapter). Give the "
            "plain model with peft_config=..., or PeftModel.from_pretrained(model, directory, is_trainable=True)"
        )
    if peft_config is None and adapter is not None:
        raise ValueError(f"model_adapter_name={adapter!r}, but the model has no adapters: give peft_config as well")
    if peft_config is None and is_quantised(cast("Any", model)):
        raise ValueError(
            f"{type(model).__name__} is quantised, and quantised weights cannot be trained: train an adapter on them, "
            "with peft_config=LoraConfig(...), or load the model without quantisation"
        )
    if peft_config is None:
        return model
    config = make_config(peft_config)
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        return _peft().get_peft_model(cast("Any", model), config, adapter_name=adapter or DEFAULT, revision=revision)


def _check_config(config: PeftConfig) -> None:
    """Refuse an adapter that cannot be trained exactly, by name and with the reason.

    Raises:
        ValueError: its kind, or one of its options.
    """
    from peft import PeftType

    kind = str(PeftType(config.peft_type).value)
    _check_kind(kind, named=type(config).__name__)
    for name, allowed in PLAIN_LORA.items() if kind == "LORA" else ():
        if (value := vars(config).get(name)) not in allowed:
            raise ValueError(
                f"peft_config: {name}={value!r} is not supported, since it changes the base model, the loss or the "
                f"call of the model. Allowed: {', '.join(map(repr, allowed))}."
            )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need the package peft: pip install 'burnish[peft]'") from error
    return peft


def _check_kind(kind: str, *, named: str) -> None:
    if kind not in SUPPORTED:
        reason = OTHERS_BECAUSE.get(kind, "it was never compared with the model's own log-probs")
        near = closest(kind, SUPPORTED)
        raise ValueError(
            f"peft_config: {named} is not supported, since {reason}{near}. Supported: {', '.join(SUPPORTED)}."
        )


def _checked_given(
    model: PeftModel, peft_config: PeftConfig | Mapping[str, Any] | None, adapter: str | None
) -> PeftModel:
    if peft_config is not None:
        raise ValueError(
            "peft_config is given, and the model has adapters already: leave peft_config out to train what it has, or "
            "merge them first (model.merge_and_unload()) for a new one"
        )
    if adapter is not None:
        if adapter not in model.peft_config:
            known = ", ".join(map(repr, model.peft_config))
            raise ValueError(f"model_adapter_name={adapter!r} is no adapter of the model. It has: {known}")
        model.set_adapter(adapter)
    if len(model.active_adapters) != 1:
        raise ValueError(
            f"{len(model.active_adapters)} adapters are active: {', '.join(model.active_adapters)}. One of them can be "
            "trained: name it with model_adapter_name"
        )
    _check_config(model.peft_config[trained_adapter(model)])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"no parameter of adapter {trained_adapter(model)!r} is trained: load it with is_trainable=True, or name "
            "it with model_adapter_name"
        )
    return model


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for a property that is deprecated; nothing that a user could change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield
