"""The reference of an adapted policy: its own model with the adapter off, or with another adapter; no second model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from burnish.models.adapters import is_adapted, plain_model, quiet_peft, trained_adapter
from burnish.models.forward import forward, teacher_of
from burnish.models.reference import ModelReference, sampled_hash

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

    from burnish.models.divergence import Teacher
    from burnish.types import TokenBatch, TokenStats

COPY = "burnish_reference"  # the name of a kept copy among the model's adapters
LAYERS = (".base_layer", ".original_module", ".token_adapter")  # what PEFT puts into the names of weights


class AdapterReference(ModelReference):
    """The policy's model, unwrapped, scored with other adapters than the one that is trained.

    Args:
        policy: with `install_forward`.
        adapter: the name of the reference's adapter, which is not trained; None for the base model.
        description: for the report.
    """

    def __init__(self, policy: PeftModel, *, adapter: str | None, description: str) -> None:
        self.model = policy
        self.adapter = adapter
        self.description = description
        self._began_with = sampled_hash(self.tensors())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All weights and buffers of the reference, by name; those of the base as if there were no adapter."""
        yield from base_tensors(self.model)
        if self.adapter is not None:
            yield from _tensors_of(self.model, self.adapter).items()

    def fingerprint(self) -> str:
        """Hash of the weights at construction."""
        return self._began_with

    @torch.no_grad()
    def score(self, batch: TokenBatch, *, needs: Iterable[str] = (), temperature: float = 1.0) -> TokenStats:
        """The reference's statistics of every trained token."""
        with using_adapter(self.model, self.adapter):
            return forward(self.model, batch, needs=needs, temperature=temperature)

    @torch.no_grad()
    def teacher(self, batch: TokenBatch) -> Teacher:
        """The reference's hidden states and head."""
        with using_adapter(self.model, self.adapter):
            return teacher_of(self.model, batch)

    @contextlib.contextmanager
    def answering(self) -> Iterator[nn.Module | None]:
        """The model under the adapters, with those of the reference on."""
        with using_adapter(self.model, self.adapter):
            yield plain_model(self.model)


def adapter_reference(
    policy: PeftModel, *, adapter: str | None, is_new: bool, asked_once: bool = False
) -> AdapterReference:
    """The reference that an adapted policy has in itself.

    Args:
        policy: with `install_forward`, before its first step.
        adapter: the adapter that is the reference; if None, the policy as it is now.
        is_new: the trained adapter was made for this run, so that the policy without it is what the run began with.
        asked_once: before the first step, and never again.

    Raises:
        ValueError: no such adapter, that which is trained, or weights outside of adapters that are trained.
    """
    trained = trained_adapter(policy)
    if not asked_once:
        _refuse_trained_base(policy)
    if adapter is not None:
        if adapter not in policy.peft_config or adapter == trained:
            problem = "the adapter that is trained" if adapter == trained else "no adapter of the model"
            others = ", ".join(repr(name) for name in policy.peft_config if name != trained)
            raise ValueError(f"ref_adapter_name={adapter!r} is {problem}; its other adapters: {others or 'none'}")
        return AdapterReference(policy, adapter=adapter, description=f"adapter {adapter!r} of the policy")
    if is_new or is_untrained(policy):
        return AdapterReference(policy, adapter=None, description="the policy with its adapter switched off")
    copy_adapter(policy, to=COPY)
    description = f"a copy of adapter {trained!r}, taken at construction"
    return AdapterReference(policy, adapter=COPY, description=description)


@contextlib.contextmanager
def using_adapter(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """Evaluate with another adapter, or with none; afterwards mode, adapter and what is trained are as before."""
    was_training, active = model.training, trained_adapter(model)
    model.eval()
    try:
        with _keep_trained(model):
            if adapter is None:
                with model.disable_adapter():
                    yield
            else:
                model.set_adapter(adapter, inference_mode=True)
                try:
                    yield
                finally:
                    model.set_adapter(active)
    finally:
        model.train(was_training)


@torch.no_grad()
def copy_adapter(model: PeftModel, *, to: str) -> None:
    """A frozen copy of the active adapter beside it, under another name; one that is there is replaced.

    Raises:
        ValueError: PEFT does not put a second adapter everywhere where the first one is.
    """
    active = trained_adapter(model)
    config: Any = copy.deepcopy(model.peft_config[active])
    config.inference_mode = True
    if vars(config).get("ensure_weight_tying"):
        config.ensure_weight_tying = False  # of two adapters only the first is tied; the values are the same
    with _keep_trained(model), torch.random.fork_rng(), quiet_peft():
        if to in model.peft_config:
            model.delete_adapter(to)
        model.add_adapter(to, config)
        model.set_adapter(active)
        source, target = _tensors_of(model, active), _tensors_of(model, to)
        if missing := [path for path in source if path not in target]:
            raise ValueError(
                f"adapter {active!r} cannot be kept as the reference, since PEFT makes no second one of {missing[0]}: "
                "give ref_model, or set precompute_ref_log_probs=True"
            )
        for path, tensor in source.items():
            target[path].copy_(tensor)


def is_untrained(model: PeftModel) -> bool:
    """The active adapter is LoRA whose product is 0, as when it is new: the model is the base, to the bit."""
    name = trained_adapter(model)
    config: Any = model.peft_config[name]
    more = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
    if config.peft_type.value != "LORA" or any(vars(config)[option] for option in more):
        return False
    factors = [
        factor
        for path, factor in model.named_parameters()
        if f".{name}" in path and (".lora_B." in path or ".lora_embedding_A." in path)
    ]
    return not any(bool(factor.count_nonzero()) for factor in factors)


def base_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a model without its adapters, under the names that they have without."""
    adapters = adapter_tensors(model) if is_adapted(model) else set[int]()
    inner = plain_model(model)
    for path, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        if id(tensor) not in adapters:
            name = path
            for layer in LAYERS if is_adapted(model) else ():
                name = name.replace(layer, "")
            yield name, tensor


def adapter_tensors(model: nn.Module) -> set[int]:
    """The ids of all parameters and buffers that belong to an adapter, whichever."""
    return {
        id(tensor) for _, container in _containers(model) for tensor in (*container.parameters(), *container.buffers())
    }


def _tensors_of(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """The parameters and buffers of one adapter, by the place where they are."""
    found: dict[str, Tensor] = {}
    for path, container in _containers(model):
        for name, tensor in (*container.named_parameters(), *container.named_buffers()):
            if name == adapter or name.startswith(f"{adapter}."):
                found[f"{path}{name.removeprefix(adapter)}"] = tensor
    return found


def _containers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Where PEFT's layers keep what belongs to their adapters, each by its name."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            for name in (*module.adapter_layer_names, *module.other_param_names):
                container = attrgetter(name)(module)
                if isinstance(container, nn.Module):
                    yield f"{path}.{name}", container


@contextlib.contextmanager
def _keep_trained(model: nn.Module) -> Iterator[None]:
    """Switching adapters changes which parameters are trained; afterwards they are the same."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        yield
    finally:
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)


def _refuse_trained_base(policy: PeftModel) -> None:
    trained = [name for name, tensor in base_tensors(policy) if tensor.requires_grad]
    if trained:
        raise ValueError(
            f"{len(trained)} weights of the base model are trained beside the adapter: {', '.join(trained[:3])}. The "
            'reference would change with them: set bias="none" in the PEFT configuration and freeze them, or give '
            "ref_model, or set precompute_ref_log_probs=True"
        )
