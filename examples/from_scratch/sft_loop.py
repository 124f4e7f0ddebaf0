"""Supervised fine-tuning with torch alone; what it shares with `dpo_loop`, log-probs and optimizer, is read there.

Each step is the one that `burnish.SFTTrainer` takes. The loss is the mean of -log pi(token) over the answers' tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from dpo_loop import linear_schedule, log_probs, make_optimizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class Example(NamedTuple):
    """Token ids of a prompt and of its answer, the end-of-sequence token included."""

    prompt: list[int]
    answer: list[int]


class Step(NamedTuple):
    """What one optimizer step looked like before its weights changed."""

    loss: float
    grad_norm: float


def train(
    model: nn.Module,
    batches: Sequence[Sequence[Example]],
    *,
    learning_rate: float = 2e-5,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
) -> list[Step]:
    """Train `model` in place on micro-batches, `accumulation` of them in a step; arguments as in `dpo_loop.train`."""
    model.train()
    optimizer = make_optimizer(model, learning_rate, weight_decay)
    steps = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]

    history = []
    for number, micro_batches in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * linear_schedule(number, len(steps), warmup_steps)

        # Every token of the step counts the same. The mean of the means of micro-batches is something else: answers
        # are of different lengths, so a token in a micro-batch of short ones would count more.
        num_tokens = sum(len(example.answer) for examples in micro_batches for example in examples)
        loss = 0.0
        for examples in micro_batches:
            prompts, answers = zip(*examples, strict=True)
            share = -log_probs(model, prompts, answers).sum() / num_tokens
            share.backward()
            loss += share.item()

        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        history.append(Step(loss, grad_norm.item()))
    return history


def main() -> list[Step]:
    """A random model learns to count: twelve steps of eight numbers, each answered by those after it."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, max_position_embeddings=32, **size))
    numbers = torch.randint(1, 90, (96,), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Example([start], [*range(start + 1, start + 6), 0]) for start in numbers]
    batches = [examples[start : start + 4] for start in range(0, len(examples), 4)]
    history = train(model, batches, learning_rate=1e-2, accumulation=2, warmup_steps=2)
    for number, step in enumerate(history, start=1):
        print(f"step {number:2}  loss {step.loss:.4f}  grad_norm {step.grad_norm:.3f}")
    return history


if __name__ == "__main__":
    main()
