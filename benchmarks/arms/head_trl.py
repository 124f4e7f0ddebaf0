"""The peer's arm of `head.py`: TRL's chunked head, as its trainers add it to a model.

The model is a head alone: what goes in are hidden states.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from head_measure import run
from torch import Tensor, nn
from transformers import LlamaConfig
from trl.trainer.utils import add_fused_lm_head


class HeadAlone(nn.Module):
    """A causal language model whose trunk gives back what it was given."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=len(weight), hidden_size=weight.shape[1])
        self.head = SimpleNamespace(weight=weight, bias=None)

    def base_model(self, inputs_embeds: Tensor, **_: Any) -> SimpleNamespace:
        """The trunk."""
        return SimpleNamespace(last_hidden_state=inputs_embeds)

    def get_output_embeddings(self) -> SimpleNamespace:
        """The head."""
        return self.head

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        """What TRL replaces."""
        return inputs_embeds @ self.head.weight.t()


def score(hidden: Tensor, weight: Tensor, ids: Tensor, is_answer: Tensor) -> tuple[Tensor, Tensor]:
    model: Any = HeadAlone(weight)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    found = model(inputs_embeds=hidden, labels=ids.masked_fill(~is_answer, -100), fused_lm_head=True)
    scored = is_answer[:, 1:]
    return found.log_probs[:, -scored.shape[1] :][scored], found.entropy[:, -scored.shape[1] :][scored]


if __name__ == "__main__":
    run(library="trl", score=score)
