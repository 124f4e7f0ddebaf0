"""The axes along which `scaling.py` makes work larger. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A step of GRPO: one prompt, its answers, no reference.
BASE = {"num_prompts": 1, "num_generations": 4, "prompt_tokens": 128, "new_tokens": 32, "beta": 0.0}


@dataclass(frozen=True)
class Point:
    """One size on an axis: what is shown for it, options of the step, and the geometry of a random model, or None."""

    value: float
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    geometry: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Axis:
    """What grows, in words, and the sizes."""

    label: str
    points: Sequence[Point]


def llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """The entries of a configuration that make a model's size."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


AXES = {
    "prompt": Axis(
        label="prompt tokens",
        points=[Point(size, {"prompt_tokens": size}) for size in (64, 128, 256, 512, 1024, 2048)],
    ),
    "answers": Axis(
        label="answers to a prompt",
        points=[Point(size, {"num_generations": size}) for size in (2, 4, 8, 16, 32)],
    ),
    "vocabulary": Axis(
        label="vocabulary",
        points=[Point(size, {}, {"vocab_size": size}) for size in (49_152, 98_304, 151_936, 262_144)],
    ),
    "size": Axis(
        label="million parameters",
        points=[
            Point(38, {}, llama(12, 384, 1024, 6, 2)),
            Point(135, {}, llama(30, 576, 1536, 9, 3)),
            Point(239, {}, llama(32, 768, 2048, 12, 4)),
            Point(362, {}, llama(32, 960, 2560, 15, 5)),
            Point(503, {}, llama(32, 1152, 3008, 18, 6)),
        ],
    ),
}


def num_parameters(geometry: Mapping[str, Any], *, vocabulary: int = 49_152) -> int:
    """Weights of a Llama whose head is its embedding."""
    hidden, inner = geometry["hidden_size"], geometry["intermediate_size"]
    keys = hidden // geometry["num_attention_heads"] * geometry["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    return geometry["num_hidden_layers"] * layer + hidden + vocabulary * hidden
