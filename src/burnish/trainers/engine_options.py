"""Options of the engine that draws answers in this process. None but `generation_dtype` changes what is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish.generation.native import AUTO, CHOICES, NativeGenerator
from burnish.trainers.config import PolicyConfig, arg

if TYPE_CHECKING:
    from torch import nn


@dataclass
class EngineOptions(PolicyConfig):
    """How answers are decoded.

    Raises:
        ValueError: a word that is none of those that an option takes.
    """

    generation_max_rows: int = arg(64, "Answers that are decoded together on a device.")
    generation_cache: str = arg(
        "auto", "Where keys and values of answers live: shared, rows, dynamic, or auto for the fastest that is exact."
    )
    generation_packing: str = arg(
        "auto", "Decode with copies of the weights in an order that the CPU reads faster: on, off, or auto: if it pays."
    )
    generation_dtype: str = arg(
        "auto", "Precision of answers: bfloat16, float32, or auto for that of training. Another one needs correction."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cache", "packing", "dtype"):
            value, allowed = vars(self)[f"generation_{name}"], CHOICES[name]
            if value not in allowed:
                raise ValueError(f"generation_{name}={value!r}; allowed: {', '.join(allowed)}")

    def make_generator(self, model: nn.Module, *, pad_token_id: int, tokenizer: Any) -> NativeGenerator:
        """The engine with these options."""
        return NativeGenerator(
            model,
            pad_token_id=pad_token_id,
            tokenizer=tokenizer,
            max_rows=self.generation_max_rows,
            cache=self.generation_cache,
            packing=self.generation_packing,
            dtype=self.generation_dtype,
        )

    def draws_in_other_precision(self) -> bool:
        """Answers come from another distribution than the policy's as it is trained."""
        trained = "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"
        return self.generation_dtype not in (AUTO, trained)
