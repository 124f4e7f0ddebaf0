"""`torch_compile` of TrainingArguments: the layers of a run's models are compiled, and the whole of a model is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import DynamoBackend

from burnish.models.adapters import plain_model
from burnish.models.compiled import compile_layers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from burnish.trainers.config import PolicyConfig


def compile_as_asked(model: nn.Module, options: PolicyConfig) -> int:
    """Have the layers of a model, bare or with adapters, compiled if `torch_compile` says so; how many there are."""
    if not options.torch_compile:
        return 0
    plain: Any = plain_model(model)
    return compile_layers(plain, backend=options.torch_compile_backend, mode=options.torch_compile_mode)


def keep_from_compiling(accelerator: Accelerator, options: PolicyConfig) -> None:
    """Have accelerate leave models as they are: it would compile the whole of one, parcels and layouts too.

    Raises:
        ValueError: accelerate was told to compile, and the run was not.
    """
    plugin: Any = accelerator.state.dynamo_plugin
    if plugin.backend != DynamoBackend.NO and not options.torch_compile:
        raise ValueError(
            f"accelerate is told to compile models ({plugin.backend.value.lower()}, by its configuration or "
            "ACCELERATE_DYNAMO_BACKEND), which Burnish does itself, layer by layer: take that out, and set "
            "torch_compile=True and torch_compile_backend"
        )
    plugin.backend = DynamoBackend.NO
