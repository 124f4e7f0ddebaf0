"""The output layer of a model as one matrix: a plain linear layer, or one with an adapter on it.

The tiled head multiplies with the matrix itself, so an adapter's forward never runs; what it would do is put in here:

    LoRA              W + s B A                               s = alpha / r, or alpha / sqrt(r) (rsLoRA)
    DoRA              m / |W + s B A| * (W + s B A)           row by row; the norm carries no gradient
    modules_to_save   the active copy of the layer
    trainable tokens  W, with the rows of these tokens replaced

Gradients flow to whatever is trained. With the adapter switched off it is W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class UnsupportedModelError(ValueError):
    """A model whose trunk or head Burnish cannot score exactly."""


@dataclass(frozen=True)
class Head:
    """What hidden states are multiplied with: weight h + bias.

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, "V"] | None


def head_matrix(layer: Any, *, owner: str) -> Head:
    """Matrix and bias of an output layer.

    Args:
        layer: as `get_output_embeddings` returns it.
        owner: the model's name, for the error.

    Raises:
        UnsupportedModelError: a layer that is no matrix, or whose matrix cannot be known.
    """
    if type(layer) is nn.Linear:
        return Head(layer.weight, layer.bias)
    if not type(layer).__module__.startswith("peft."):
        raise UnsupportedModelError(
            f"the head of {owner} is {type(layer).__name__}, not a plain torch.nn.Linear, so its log-probs cannot be "
            "computed in tiles. Keep a head out of quantisation, with llm_int8_skip_modules=['lm_head'] or its like."
        )
    return _adapted(layer, owner)


def _adapted(layer: Any, owner: str) -> Head:
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if type(layer) is TrainableTokensWrapper:
        return _adapted(layer.token_adapter, owner)
    if type(layer) is ModulesToSaveWrapper:
        return head_matrix(_chosen_copy(layer), owner=owner)
    if type(layer) not in (LoraLinear, TrainableTokensLayer):
        kind = f"{type(layer).__module__}.{type(layer).__name__}"
        raise UnsupportedModelError(
            f"the head of {owner} has an adapter of the kind {kind}, whose matrix is not known. Leave the head out of "
            'target_modules, train a copy of it with modules_to_save=["lm_head"], or use LoRA.'
        )
    base = head_matrix(layer.base_layer, owner=owner)
    if type(layer) is TrainableTokensLayer and base.bias is not None:
        raise UnsupportedModelError(f"PEFT leaves out the bias of the head of {owner} with trainable tokens on it")
    if layer.merged:
        raise UnsupportedModelError(f"the adapter on the head of {owner} is merged: call unmerge_adapter() first")
    if layer.disable_adapters:
        return base
    with torch.autocast(base.weight.device.type, enabled=False):
        if type(layer) is TrainableTokensLayer:
            return Head(layer.get_merged_weights(layer.active_adapters), base.bias)
        return _with_lora(layer, base, owner)


def _chosen_copy(wrapper: Any) -> nn.Module:
    """What a `modules_to_save` runs: the active adapter's copy, or the layer itself."""
    active = wrapper.active_adapters
    if wrapper.disable_adapters or not active or active[0] not in wrapper.modules_to_save:
        return wrapper.original_module
    return wrapper.modules_to_save[active[0]]


def _with_lora(layer: Any, base: Head, owner: str) -> Head:
    weight, bias = base.weight, base.bias
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        _refuse_unknown(layer, name, owner)
        down, up, scaling = layer.lora_A[name], layer.lora_B[name], layer.scaling[name]
        change = scaling * (up.weight @ down.weight)  # (V, H)
        shift = None if up.bias is None else scaling * up.bias  # (V,)
        if name in layer.lora_variant:
            whole = base.weight + change
            factor = layer.lora_magnitude_vector[name].weight / whole.detach().norm(dim=1)  # (V,)
            change = factor[:, None] * whole - base.weight
            shift = None if shift is None else factor * shift
        weight = weight + change
        bias = bias if shift is None else (shift if bias is None else bias + shift)
    return Head(weight, bias)


def _refuse_unknown(layer: Any, name: str, owner: str) -> None:
    from peft.tuners.lora.variants import DoraLinearVariant

    variant = layer.lora_variant.get(name, DoraLinearVariant)
    if variant is not DoraLinearVariant and type(variant) is not DoraLinearVariant:
        raise UnsupportedModelError(
            f"the head of {owner} has LoRA of the kind {variant}, whose matrix is not known: leave lm_head out of "
            "target_modules"
        )
    dropout = layer.lora_dropout[name]
    if isinstance(dropout, nn.Dropout) and dropout.p > 0:
        raise UnsupportedModelError(
            f"the adapter on the head of {owner} has lora_dropout={dropout.p}, which drops hidden states, so that it "
            "is no matrix: set disable_dropout=True or lora_dropout=0, or leave lm_head out of target_modules"
        )
