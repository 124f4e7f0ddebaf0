"""KTO with torch alone; what it shares with `dpo_loop`, log-probs and optimizer, is read there.

Each step is the one that `burnish.KTOTrainer` takes. KTO (Ethayarajh et al., 2402.01306) needs no pairs: each answer
was judged by itself. With r = log pi(answer) - log ref(answer) the loss is

    1 - sigmoid(beta * (r - z))    of a desirable answer
    1 - sigmoid(beta * (z - r))    of an undesirable one

where z, the reference point, estimates how far the policy has gone from the reference: the mean of r over answers to
other prompts, at least 0. It has no gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from dpo_loop import linear_schedule, log_probs, make_optimizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


class Judged(NamedTuple):
    """Token ids of a prompt, of its answer, and of an answer to another prompt; and how the first was judged."""

    prompt: list[int]
    answer: list[int]
    other: list[int]
    is_desirable: bool


class Step(NamedTuple):
    """What one optimizer step looked like before its weights changed."""

    loss: float
    grad_norm: float
    kl: float


def log_ratios(policy: nn.Module, reference: nn.Module, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """r of each answer, (rows,)."""
    with torch.no_grad():
        of_reference = log_probs(reference, prompts, answers)
    return log_probs(policy, prompts, answers) - of_reference


def train(
    model: nn.Module,
    batches: Sequence[Sequence[Judged]],
    *,
    reference: nn.Module | None = None,
    beta: float = 0.1,
    learning_rate: float = 1e-6,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
) -> list[Step]:
    """Train `model` in place on micro-batches, `accumulation` of them in a step; arguments as in `dpo_loop.train`."""
    reference = copy.deepcopy(model) if reference is None else reference
    reference.eval().requires_grad_(False)
    model.train()
    optimizer = make_optimizer(model, learning_rate, weight_decay)
    steps = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]

    history = []
    for number, micro_batches in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * linear_schedule(number, len(steps), warmup_steps)

        # The reference point is one number for the whole step. One for each micro-batch would be a worse estimate, and
        # the clamp at 0 would make the loss depend on how the step is cut.
        with torch.no_grad():
            others = [
                log_ratios(model, reference, [row.prompt for row in rows], [row.other for row in rows])
                for rows in micro_batches
            ]
        kl = torch.cat(others).mean().clamp(min=0)

        num_answers, loss = sum(map(len, micro_batches)), 0.0
        for rows in micro_batches:
            ratios = log_ratios(model, reference, [row.prompt for row in rows], [row.answer for row in rows])
            sign = torch.tensor([1.0 if row.is_desirable else -1.0 for row in rows])
            share = (1 - torch.sigmoid(beta * sign * (ratios - kl))).sum() / num_answers
            share.backward()
            loss += share.item()

        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        history.append(Step(loss, grad_norm.item(), kl.item()))
    return history


def main() -> list[Step]:
    """A random model learns that counting up is desirable, and counting down is not."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, max_position_embeddings=32, **size))
    numbers = torch.randint(6, 94, (97,), generator=torch.Generator().manual_seed(0)).tolist()

    def count(start: int, is_up: bool) -> list[int]:
        return [*(range(start + 1, start + 6) if is_up else range(start - 1, start - 6, -1)), 0]

    rows = [
        Judged([start], count(start, index % 2 == 0), count(other, index % 2 == 1), index % 2 == 0)
        for index, (start, other) in enumerate(pairwise(numbers))
    ]
    batches = [rows[start : start + 4] for start in range(0, len(rows), 4)]
    history = train(model, batches, learning_rate=3e-3, accumulation=2, warmup_steps=2)
    for number, step in enumerate(history, start=1):
        print(f"step {number:2}  loss {step.loss:.4f}  grad_norm {step.grad_norm:.3f}  kl {step.kl:.3f}")
    return history


if __name__ == "__main__":
    main()
