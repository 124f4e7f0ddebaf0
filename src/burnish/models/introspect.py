"""What a causal model's trunk and head are. The only room that probes a model; everybody else reads `HeadSpec`.

Families scale or cap their logits under names that do not say whether they multiply or divide, so the transform is
not looked up: it is the candidate that reproduces the model's own logits on a few tokens, or an error.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish.models.head_layer import Head, UnsupportedModelError, head_matrix

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

SCALE_NAMES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
SOFTCAP_NAME = "final_logit_softcapping"
PROBE_TOKENS = 6
NUM_EXPERTS_NAMES = ("num_experts", "num_local_experts")
ROTATION_NAME = "apply_rotary_pos_emb"
EPSILON_NAMES = ("variance_epsilon", "eps")
GATED_LAYER_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
BALANCING_PARAMETERS = {"gate_logits", "num_experts", "top_k", "attention_mask"}


@dataclass(frozen=True)
class HeadSpec:
    """logits = softcap * tanh(scale * (W h + b) / softcap), or scale * (W h + b) without a softcap."""

    scale: float = 1.0
    softcap: float | None = None

    def at_temperature(self, temperature: float) -> HeadSpec:
        """The head whose logits are these divided by `temperature`.

        >>> HeadSpec(scale=1.0, softcap=30.0).at_temperature(2.0)
        HeadSpec(scale=0.5, softcap=15.0)
        """
        softcap = None if self.softcap is None else self.softcap / temperature
        return HeadSpec(scale=self.scale / temperature, softcap=softcap)


@dataclass(frozen=True)
class RouterSpec:
    """The load-balancing loss of a family of mixtures of experts: its own function, and the sizes it is called with."""

    loss_function: Callable[..., Any]
    num_experts: int
    top_k: int


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The part of a causal model that turns token ids into the hidden states that its head reads.

    Raises:
        UnsupportedModelError: the model has no separate trunk, or is an encoder-decoder.
    """
    trunk = model.base_model if reads_images(model) else model.get_decoder()
    if trunk is None or trunk is model or model.config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no decoder-only trunk below its head. Use an AutoModelForCausalLM."
        )
    return trunk


def reads_images(model: PreTrainedModel) -> bool:
    """The model takes images beside text: its trunk is then the whole of what lies below the head."""
    return "image" in model.input_modalities


def places_tokens(trunk: nn.Module) -> bool:
    """The trunk works out the positions of text around images itself (m-RoPE); given ones would be wrong."""
    return hasattr(trunk, "get_rope_index")


def layer_kinds(trunk: nn.Module) -> frozenset[str]:
    """What its layers are, in transformers' words: `full_attention`, `sliding_attention`, `conv`, …, `recurrent`."""
    config: Any = trunk.config
    kinds = frozenset(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds | ({"recurrent"} if getattr(trunk, "_is_stateful", False) else frozenset())


def takes_attention(trunk: nn.Module) -> bool:
    """Its layers call whatever attention is registered under the name in their configuration."""
    return bool(getattr(trunk, "_supports_attention_backend", False))


def sliding_windows(trunk: nn.Module) -> list[int]:
    """The window of each layer that has one, in their order."""
    config: Any = trunk.config
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None:
        return []
    num_layers = config.num_hidden_layers if kinds is None else kinds.count("sliding_attention")
    return [window] * num_layers


def norm_epsilon(module: nn.Module) -> float | None:
    """The epsilon of a module that has one, and a weight (H,), and nothing else; None for others."""
    own = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    epsilons = [value for name in EPSILON_NAMES if isinstance(value := getattr(module, name, None), float)]
    is_norm = own == ["weight"] and epsilons and not list(module.children())
    return epsilons[0] if is_norm and module.get_parameter("weight").ndim == 1 else None


def gated_layers(module: nn.Module) -> tuple[str, str, str] | None:
    """The names of gate, up and down layers of a feed-forward that has them, and at most an activation beside them."""
    children = dict(module.named_children())
    names = next((names for names in GATED_LAYER_NAMES if set(names) <= set(children)), None)
    if names is None or set(children) - {*names, "act_fn"} or list(module.parameters(recurse=False)):
        return None
    return names if hasattr(children[names[0]], "in_features") else None


def rotation_of(module: nn.Module) -> FunctionType | None:
    """The function by which an attention rotates queries and keys, if its forward calls it by transformers' name."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or ROTATION_NAME not in forward.__code__.co_names:
        return None
    rotation = forward.__globals__.get(ROTATION_NAME)
    return rotation if isinstance(rotation, FunctionType) and isinstance(head_width(module), int) else None


def with_rotation(module: nn.Module, rotation: Callable[..., Any]) -> FunctionType:
    """The forward of the module's class, which calls another function for its rotation.

    Its code has another name: torch.compile remembers by the code what it has put into the globals.
    """
    own: Any = type(module).forward
    changed = FunctionType(
        own.__code__.replace(co_name=f"lean_{own.__name__}"),
        {**own.__globals__, ROTATION_NAME: rotation},
        own.__name__,
        own.__defaults__,
        own.__closure__,
    )
    changed.__kwdefaults__ = own.__kwdefaults__
    return changed


def head_width(module: nn.Module) -> int | None:
    """D of an attention."""
    return getattr(module, "head_dim", None)


def input_width(module: nn.Module) -> int:
    """H of a norm or a gated feed-forward."""
    names = gated_layers(module)
    return module.get_parameter("weight").shape[0] if names is None else module.get_submodule(names[0]).in_features  # pyright: ignore[reportReturnType]


def head_of(model: PreTrainedModel) -> Head:
    """The matrix and bias of the model's output layer, with the adapter that is active on it.

    Raises:
        UnsupportedModelError: the model has none, or it is no matrix.
    """
    return head_matrix(model.get_output_embeddings(), owner=type(model).__name__)


def is_quantised(model: PreTrainedModel) -> bool:
    """Weights of the model are kept in few bits, so that they cannot be trained themselves."""
    return bool(getattr(model, "is_quantized", False))


def is_placed(model: nn.Module) -> bool:
    """Loading it decided where its parts are: it is quantised, or has a `device_map`."""
    return any(
        getattr(module, "is_quantized", False) or getattr(module, "hf_device_map", None) for module in model.modules()
    )


def keep_quantised_gradients(model: nn.Module) -> None:
    """Keep 4-bit layers of bitsandbytes on a CPU in the layout that has a gradient, in place.

    On processors with AVX512-BF16 the first evaluation packs their weights for inference, for good, and what flows back
    through them is wrong from then on.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.state_dict()  # unpacks what an earlier evaluation packed


def quantisation_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What a quantised model keeps beside its weights to read them, such as scales; [] for others."""
    if not any(getattr(module, "is_quantized", False) for module in model.modules()):
        return []
    known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return [
        (name, value)
        for name, value in model.state_dict().items()
        if name not in known and isinstance(value, torch.Tensor)
    ]


@torch.no_grad()
def inspect_head(model: PreTrainedModel) -> HeadSpec:
    """Find the transform between `head_of(model)` and the model's logits, by comparing both on a few tokens.

    Raises:
        UnsupportedModelError: no known transform reproduces the model's logits.
    """
    was_training = model.training
    model.eval()
    try:
        raw, logits = _raw_and_final_logits(model)
    finally:
        model.train(was_training)
    errors = {spec: _error(spec, raw, logits) for spec in _candidates(model)}
    best = min(errors, key=lambda spec: errors[spec])
    tolerance = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 5e-2
    if not errors[best] <= tolerance:
        raise UnsupportedModelError(
            f"{type(model).__name__} changes its logits in a way that is not known: the closest transform, {best}, "
            f"is off by {errors[best]:.2e} of their size (allowed: {tolerance:.0e})."
        )
    return best


def logits_of(spec: HeadSpec, raw: Tensor) -> Tensor:
    """The model's logits from the product of head and hidden state; any shape."""
    scaled = raw * spec.scale
    return scaled if spec.softcap is None else spec.softcap * torch.tanh(scaled / spec.softcap)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's end-of-sequence and those of the generation config.

    A model that generates nothing, a classifier say, has those of its configuration.
    """
    from transformers import GenerationConfig

    generates = model.can_generate()
    generation = model.generation_config if generates else GenerationConfig.from_model_config(model.config)
    return configured_end_ids(generation, tokenizer)


def configured_end_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The same of a model whose generation config is at hand, without the model."""
    of_model = None if generation is None else generation.eos_token_id
    ids = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def router_aux_loss_coef(model: PreTrainedModel, wanted: float | None = None) -> float:
    """The factor of a mixture of experts' load-balancing loss: the wanted one, else the model's own; 0 for others.

    Raises:
        ValueError: a factor is wanted for a model that routes no tokens.
    """
    own = getattr(model.config.get_text_config(), "router_aux_loss_coef", None)
    if wanted and own is None:
        raise ValueError(
            f"router_aux_loss_coef={wanted} is set, but {type(model).__name__} is no mixture of experts: leave it unset"
        )
    return float((own if wanted is None else wanted) or 0.0)


@torch.no_grad()
def inspect_router(model: PreTrainedModel) -> RouterSpec | None:
    """The load-balancing loss of a mixture of experts, if it gives the model's own `aux_loss` on a few tokens.

    None for a dense model, and for a family that has no such loss, or another one than its function says.
    """
    spec = _router_candidate(model)
    if spec is None:
        return None
    was_training = model.training
    model.eval()
    try:
        own, found = _own_and_found_aux_loss(model, spec)
    finally:
        model.train(was_training)
    return spec if own is not None and torch.allclose(own.float(), found.float(), rtol=1e-4, atol=0.0) else None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each module is in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """The model without the autocast that accelerate has put around its forward: that of the caller is the only one."""
    wrapped, own = vars(model).get("forward"), vars(model).get("_original_forward")
    if own is None:
        yield
        return
    model.forward = own
    try:
        yield
    finally:
        model.forward = wrapped  # pyright: ignore[reportAttributeAccessIssue]


def num_dropouts(model: nn.Module) -> int:
    """How many dropout probabilities of the model are above 0."""
    return len(_dropouts(model))


def disable_dropout(model: nn.Module) -> int:
    """Set every dropout probability of the model to 0, in place; returns how many were above 0."""
    found = _dropouts(model)
    for module, name in found:
        setattr(module, name, 0.0)
    return len(found)


def _dropouts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Each probability above 0: a layer's `p`, or the number that a module keeps for a functional dropout.

    Families call the number `attention_dropout`, `residual_dropout`, `dropout`, `layerdrop` and more.
    """
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if ("drop" in name or (name == "p" and isinstance(module, nn.Dropout)))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value <= 1
    ]


def _raw_and_final_logits(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    head = head_of(model)
    ids = torch.arange(1, PROBE_TOKENS + 1, device=head.weight.device)[None] % head.weight.shape[0]  # (1, 6)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    hidden = trunk_of(model)(**inputs)[0]
    final = type(model).forward(model, **inputs).logits
    return nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias), final


def _candidates(model: PreTrainedModel) -> list[HeadSpec]:
    config = model.config.get_text_config()
    softcap = getattr(config, SOFTCAP_NAME, None)
    values = [float(v) for name in SCALE_NAMES if (v := getattr(config, name, None))]
    scales = [1.0, *values, *(1 / value for value in values)]
    return [HeadSpec(scale, cap) for scale in scales for cap in dict.fromkeys([softcap, None])]


def _router_candidate(model: PreTrainedModel) -> RouterSpec | None:
    modules = [sys.modules[cls.__module__] for cls in type(model).__mro__]
    function = next((f for m in modules if (f := getattr(m, "load_balancing_loss_func", None))), None)
    config = model.config.get_text_config()
    found = (getattr(owner, name, None) for owner in (model, config) for name in NUM_EXPERTS_NAMES)
    num_experts = next((number for number in found if number), None)
    top_k = getattr(model, "num_experts_per_tok", None) or getattr(config, "num_experts_per_tok", None)
    if function is None or num_experts is None or top_k is None:
        return None
    known = inspect.signature(function).parameters.keys() == BALANCING_PARAMETERS
    return RouterSpec(function, num_experts, top_k) if known else None


def _own_and_found_aux_loss(model: PreTrainedModel, spec: RouterSpec) -> tuple[Tensor | None, Tensor]:
    """`aux_loss` of the model's own forward, and of the family's function on the router logits of the trunk."""
    embeddings: Any = model.get_input_embeddings()
    ids = torch.arange(1, PROBE_TOKENS + 1, device=embeddings.weight.device)[None] % len(embeddings.weight)  # (1, 6)
    mask = (ids != ids[0, 0]).long()  # the first token as padding
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "output_router_logits": True}
    router_logits = getattr(trunk_of(model)(**inputs), "router_logits", None)
    if not (isinstance(router_logits, tuple) and router_logits):  # no layer routes, or the trunk does not say how
        return None, torch.zeros(())
    own = type(model).forward(model, **inputs).aux_loss
    return own, spec.loss_function(router_logits, spec.num_experts, top_k=spec.top_k, attention_mask=mask)


def _error(spec: HeadSpec, raw: Tensor, logits: Tensor) -> float:
    size = logits.double().abs().max().clamp(min=1e-12)
    return ((logits_of(spec, raw.double()) - logits.double()).abs().max() / size).item()
