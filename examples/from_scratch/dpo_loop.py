"""DPO with torch alone: every line between token ids and new weights.

Each step is the one that `burnish.DPOTrainer` takes: the tests train both on the same pairs and compare loss, gradient
norm and weights. transformers only holds the model here. Read it from top to bottom:

    tokens -> log_probs -> dpo_losses -> train

Direct preference optimisation (Rafailov et al., 2305.18290) has pairs of answers to one prompt, of which one is
preferred. With `pi` the policy that is trained and `ref` a frozen copy of it, the loss of a pair is

    -log sigmoid(beta * [(log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected))])
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM


class Pair(NamedTuple):
    """Token ids of a prompt and of its two answers, each answer with its end-of-sequence token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class Step(NamedTuple):
    """What one optimizer step looked like before its weights changed."""

    loss: float
    grad_norm: float
    margin: float


# 1. Tokens in, log-probs out.


def pad(sequences: Sequence[list[int]]) -> Tensor:
    """Sequences of different lengths as one (rows, longest) tensor, filled up on the right with id 0.

    What stands in the padding does not matter: a causal model looks to the left only, so no real token sees it.
    """
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences])


def log_probs(model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> Tensor:
    """Log-prob of each whole answer behind its prompt, (rows,): the sum over its tokens, in nats."""
    ids = pad([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])  # (rows, length)
    logits = model(input_ids=ids).logits  # (rows, length, vocabulary)

    # Position t of the logits predicts token t + 1, so the last position and the first token have no partner.
    every = logits[:, :-1].log_softmax(-1)
    of_tokens = every.gather(2, ids[:, 1:, None]).squeeze(2)  # (rows, length - 1)

    # Only the answer counts: column t of `of_tokens` belongs to token t + 1.
    column = torch.arange(1, ids.shape[1])
    start = torch.tensor([[len(prompt)] for prompt in prompts])
    end = start + torch.tensor([[len(answer)] for answer in answers])
    is_answer = (column >= start) & (column < end)  # (rows, length - 1)
    return (of_tokens * is_answer).sum(1)


# 2. The loss.


def dpo_losses(policy: nn.Module, reference: nn.Module, pairs: Sequence[Pair], beta: float) -> tuple[Tensor, Tensor]:
    """Loss and margin of each pair, (pairs,) and (pairs,)."""
    prompts = [pair.prompt for pair in pairs] * 2
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]

    chosen, rejected = log_probs(policy, prompts, answers).chunk(2)
    with torch.no_grad():  # the reference is a fixed point to measure from
        ref_chosen, ref_rejected = log_probs(reference, prompts, answers).chunk(2)

    margins = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    return -logsigmoid(margins), margins.detach()


# 3. The optimizer, as transformers.Trainer sets it up.


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW that pulls matrices towards zero, but neither biases nor the scales of norms, which are vectors."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


def linear_schedule(step: int, num_steps: int, warmup_steps: int) -> float:
    """Factor of the learning rate in step 0, 1, ...: up from 0 during the warm-up, then down to 0 at the end."""
    if step < warmup_steps:
        return step / max(warmup_steps, 1)
    return max(num_steps - step, 0) / max(num_steps - warmup_steps, 1)


# 4. The loop.


def train(
    model: nn.Module,
    batches: Sequence[Sequence[Pair]],
    *,
    reference: nn.Module | None = None,
    beta: float = 0.1,
    learning_rate: float = 1e-6,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
) -> list[Step]:
    """Train `model` in place.

    Args:
        model: maps `input_ids` to an output with `logits`; dropout must be off.
        batches: micro-batches, in the order in which they are trained on.
        reference: the frozen policy; a copy of `model` as it is now if None.
        beta: how strongly the policy is held near the reference.
        learning_rate: at the peak of the schedule.
        weight_decay: of matrices.
        warmup_steps: over which the learning rate rises.
        accumulation: micro-batches in a step; the last step takes what is left.
        max_grad_norm: a longer gradient is scaled down to this length.
    """
    reference = copy.deepcopy(model) if reference is None else reference
    reference.eval().requires_grad_(False)
    model.train()
    optimizer = make_optimizer(model, learning_rate, weight_decay)
    steps = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]

    history = []
    for number, micro_batches in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * linear_schedule(number, len(steps), warmup_steps)

        # Exact accumulation: the step's loss is the mean over all its pairs. A micro-batch adds the sum of its losses
        # divided by the number of pairs in the whole step. The mean of micro-batch means is something else as soon as
        # two micro-batches differ in size, as they do at the end of nearly every epoch.
        num_pairs = sum(len(pairs) for pairs in micro_batches)
        loss, margin = 0.0, 0.0
        for pairs in micro_batches:
            losses, margins = dpo_losses(model, reference, pairs, beta)
            share = losses.sum() / num_pairs
            share.backward()  # gradients of the micro-batches add up in p.grad
            loss += share.item()
            margin += margins.sum().item() / num_pairs

        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)  # its length before clipping
        optimizer.step()
        optimizer.zero_grad()
        history.append(Step(loss, grad_norm.item(), margin))
    return history


# 5. On a random model: it learns to prefer counting up to counting down.


def count_pairs(num_pairs: int, vocabulary: int, *, length: int = 6) -> list[Pair]:
    """A number as the prompt; the numbers after it are preferred to the numbers before it. Token 0 ends an answer."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(length, vocabulary - length, (num_pairs,), generator=generator).tolist()
    return [
        Pair([start], [*range(start + 1, start + length), 0], [*range(start - 1, start - length, -1), 0])
        for start in starts
    ]


def main() -> list[Step]:
    """Twelve steps of eight pairs, in micro-batches of four."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=100, max_position_embeddings=32, **size))
    pairs = count_pairs(96, vocabulary=100)
    batches = [pairs[start : start + 4] for start in range(0, len(pairs), 4)]
    history = train(model, batches, learning_rate=3e-3, accumulation=2, warmup_steps=2)
    for number, step in enumerate(history, start=1):
        print(f"step {number:2}  loss {step.loss:.4f}  grad_norm {step.grad_norm:.3f}  margin {step.margin:+.3f}")
    return history


if __name__ == "__main__":
    main()
