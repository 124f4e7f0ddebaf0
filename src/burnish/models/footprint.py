"""What full fine-tuning of a model takes, in memory and on disk: estimates from its size; imports no torch.

With P parameters of w bytes each, s optimizer states per parameter, R padded tokens in one forward, L layers, and
h, i, q, k the widths of hidden states, MLP, queries and keys:

    weights, gradients    P w each          reference   P w, where a second model is held
    optimizer             s P w             autocast    2 P: the weights once more, in 16 bits
    activations           R L a (4 i + 8 h + 3 q + 2 k),   a = 4 bytes, 2 under autocast
        checkpointed      R a (L h + 4 i + 8 h + 3 q + 2 k): the inputs of the layers, and one layer at a time
    head                  2 tiles of logits
    process               Python, torch and the libraries

The numbers that a layer keeps for its backward pass: the inputs of its products, of its norms and of the MLP's gate,
and queries, keys and values; attention itself keeps one number a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from burnish.models.size import ModelShape

OPTIMIZER_STATES: Mapping[str, float] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "adamw_anyprecision"), 2),
    **dict.fromkeys(("sgd", "adafactor"), 0),
    **dict.fromkeys(("adagrad", "rmsprop"), 1),
}
DEFAULT_STATES = 2.0
BYTES_OF: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
DEFAULT_BYTES = 4
PROCESS_BYTES = 700_000_000
HEAD_BYTES = 2 * (64 << 20)  # two tiles of logits on a CPU, see models/head.py
# Float32 products are at their best speed with fewer, and these fit anywhere. In low precision products are cheap, and
# what every part costs besides (gradients of all weights, cast and added) is not.
CPU_TOKENS, CPU_TOKENS_LOW_PRECISION = 1024, 4096


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a run does, as far as memory goes.

    Attributes:
        num_tokens: of one forward and backward, padding included; see `tokens_of_part`.
        weight_bytes: of one weight.
        optimizer_states: numbers that the optimizer keeps for each weight.
        has_reference: a second model is held.
        is_autocast: products run in 16 bits.
        is_checkpointed: activations are computed again in the backward pass.
    """

    num_tokens: int
    weight_bytes: int = DEFAULT_BYTES
    optimizer_states: float = DEFAULT_STATES
    has_reference: bool = True
    is_autocast: bool = False
    is_checkpointed: bool = False


def token_budget(asked: int | None, *, on_cpu: bool, low_precision: bool) -> int | None:
    """The most tokens of a part of a step: what was asked for, 0: no bound; unset, on a CPU, what its precision takes.

    >>> token_budget(None, on_cpu=True, low_precision=False), token_budget(0, on_cpu=True, low_precision=False)
    (1024, None)
    """
    if asked is not None:
        return asked or None
    if not on_cpu:
        return None
    return CPU_TOKENS_LOW_PRECISION if low_precision else CPU_TOKENS


def tokens_of_part(budget: int | None, *, of_group: int, of_micro_batch: int, of_step: int) -> int:
    """The most tokens of one forward: micro-batches are cut between groups, and put together, to a budget.

    >>> tokens_of_part(1024, of_group=100, of_micro_batch=400, of_step=800)
    800
    """
    return of_micro_batch if budget is None else min(of_step, max(budget, of_group))


def memory_parts(num_parameters: int, shape: ModelShape | None, training: Training) -> dict[str, int]:
    """Bytes of each part; activations only if the shape of the model is known.

    >>> memory_parts(1000, None, Training(num_tokens=1, has_reference=False))["optimizer"]
    8000
    """
    weights = num_parameters * training.weight_bytes
    parts = {
        "weights": weights,
        "gradients": weights,
        "optimizer": int(weights * training.optimizer_states),
        "reference": weights if training.has_reference else 0,
        "autocast": 2 * num_parameters if training.is_autocast else 0,
        "activations": 0 if shape is None else _activations(shape, training),
        "head": HEAD_BYTES,
        "process": PROCESS_BYTES,
    }
    return {name: number for name, number in parts.items() if number}


def checkpoint_bytes(num_parameters: int, training: Training, *, is_model_only: bool = False) -> int:
    """A checkpoint: the weights and, unless it is of the model only, the optimizer's states; the rest is small.

    >>> checkpoint_bytes(1000, Training(num_tokens=1))
    12000
    """
    states = 0 if is_model_only else training.optimizer_states
    return int(num_parameters * training.weight_bytes * (1 + states))


def _activations(shape: ModelShape, training: Training) -> int:
    layer = 4 * shape.inner + 8 * shape.hidden + 3 * shape.query + 2 * shape.key
    kept = shape.layers * shape.hidden + layer if training.is_checkpointed else shape.layers * layer
    return training.num_tokens * kept * (2 if training.is_autocast else 4)
