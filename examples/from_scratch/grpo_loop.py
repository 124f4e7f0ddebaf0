"""GRPO with torch alone: every line between sampled answers and new weights.

Each step is the one that `burnish.GRPOTrainer` takes: the tests train both on the same answers and compare loss,
gradient norm and weights. transformers only holds the model here. Read it from top to bottom:

    draw -> advantages -> log_probs of old policy and reference -> token_losses -> train

Group relative policy optimisation (Shao et al., 2402.03300) compares several answers to one prompt. With `r` the ratio
of the policy to the one that drew the answers (old), and A how much better an answer is than its group, a token's loss

    -min(r A, clamp(r, 1 - epsilon, 1 + epsilon) A) + beta * KL

is averaged over all tokens of an optimizer step (DAPO, 2503.14476): none weighs less because its answer is long.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


class Group(NamedTuple):
    """A prompt, sampled answers to it, and the reward of each; all token ids."""

    prompt: list[int]
    answers: list[list[int]]
    rewards: list[float]


class Row(NamedTuple):
    """One answer as it is trained on; log-probs (tokens,) are fixed when the round begins."""

    prompt: list[int]
    answer: list[int]
    advantage: float
    old: Tensor
    reference: Tensor | None


class Step(NamedTuple):
    """What an optimizer step looked like before its weights changed."""

    loss: float
    grad_norm: float


# 1. Rewards in, advantages out.


def advantages(rewards: Sequence[float]) -> list[float]:
    """How much better each answer is than the mean of its group, in standard deviations of the group."""
    values = torch.tensor(rewards)
    return ((values - values.mean()) / (values.std() + 1e-4)).tolist()


# 2. Tokens in, log-probs out.


def log_probs(model: nn.Module, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> list[Tensor]:
    """Log-probs of each answer's tokens behind its prompt, (tokens,) each, in nats.

    Rows are filled up on the right. A causal model looks to the left only, so no real token sees the padding.
    """
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # (rows, longest)

    # Position t of the logits predicts token t + 1, so the last position and the first token have no partner.
    every = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    of_tokens = every.gather(2, ids[:, 1:, None]).squeeze(2)  # (rows, longest - 1)
    starts = [len(prompt) - 1 for prompt in prompts]
    return [of_tokens[row, start : start + len(answers[row])] for row, start in enumerate(starts)]


# 3. The loss.


def token_losses(logps: Tensor, row: Row, epsilon: float, beta: float) -> Tensor:
    """Loss of each token of an answer, (tokens,)."""
    ratio = (logps - row.old).exp()
    losses = -torch.minimum(ratio * row.advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * row.advantage)
    if row.reference is None:
        return losses
    difference = row.reference - logps  # the KL is never negative, and the ratio makes its gradient the right one
    return losses + beta * ratio * (difference.exp() - 1 - difference)


# 4. The optimizer, as transformers.Trainer sets it up.


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; matrices are pulled towards zero, biases and the scales of norms, which are vectors, are not."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim >= 2) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


# 5. The loop.


def train(
    model: nn.Module,
    draw: Callable[[nn.Module, int], list[Group]],
    *,
    num_rounds: int,
    steps_per_round: int = 1,
    reference: nn.Module | None = None,
    beta: float = 0.0,
    epsilon: float = 0.2,
    learning_rate: float = 1e-6,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
) -> list[Step]:
    """Train `model` in place.

    Args:
        model: without dropout.
        draw: (model, round) -> groups of answers, sampled from the model as it is now.
        num_rounds: how often answers are drawn.
        steps_per_round: optimizer steps that the answers of a round are cut into; the policy moves between them.
        reference: the frozen policy that `beta` pulls to; a copy of `model` as it is now if None.
        beta: strength of that pull.
        epsilon: how far a ratio may leave 1 before its token has no gradient.
        learning_rate: in the first step; it falls linearly to 0.
        weight_decay: of matrices.
        max_grad_norm: a longer gradient is scaled down to this length.
    """
    reference = (copy.deepcopy(model) if reference is None else reference).eval().requires_grad_(False)
    optimizer = make_optimizer(model, learning_rate, weight_decay)
    history: list[Step] = []
    for number in range(num_rounds):
        rows = score(model, reference if beta else None, draw(model, number))
        size = len(rows) // steps_per_round
        for start in range(0, len(rows), size):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - len(history) / (num_rounds * steps_per_round))
            step = rows[start : start + size]
            scored = log_probs(model, [row.prompt for row in step], [row.answer for row in step])
            losses = [token_losses(logps, row, epsilon, beta) for logps, row in zip(scored, step, strict=True)]
            loss = torch.cat(losses).mean()  # over all tokens of the step
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)  # its length before clipping
            optimizer.step()
            optimizer.zero_grad()
            history.append(Step(loss.item(), grad_norm.item()))
    return history


@torch.no_grad()
def score(model: nn.Module, reference: nn.Module | None, groups: Sequence[Group]) -> list[Row]:
    """Everything about a round's answers that does not change while it is trained on."""
    rows: list[Row] = []
    for prompt, answers, rewards in groups:
        prompts = [prompt] * len(answers)
        old = log_probs(model, prompts, answers)
        fixed = [None] * len(answers) if reference is None else log_probs(reference, prompts, answers)
        rows += [Row(prompt, *row) for row in zip(answers, advantages(rewards), old, fixed, strict=True)]
    return rows


# 6. On a random model: it learns to answer with even numbers.


@torch.no_grad()
def sample_even(model: nn.Module, number: int) -> list[Group]:
    """Eight answers to each of eight prompts, rewarded by the share of their tokens that are even; token 0 ends one."""
    generator, groups = torch.Generator().manual_seed(number), []
    for prompt in torch.randint(1, 50, (8,), generator=generator).tolist():
        ids = torch.full((8, 1), prompt)
        for _ in range(6):
            probs = model(input_ids=ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probs, 1, generator=generator)], dim=1)
        answers = [row[: row.index(0) + 1] if 0 in row else row for row in ids[:, 1:].tolist()]
        groups.append(Group([prompt], answers, [sum(t % 2 == 0 for t in a) / len(a) for a in answers]))
    return groups


def main() -> list[float]:
    """Twelve rounds of 64 answers, each in two optimizer steps; returns the mean reward of each round."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model, means = LlamaForCausalLM(LlamaConfig(vocab_size=50, **size)), []

    def draw(policy: nn.Module, number: int) -> list[Group]:
        groups = sample_even(policy, number)
        means.append(sum(sum(group.rewards) for group in groups) / 64)
        return groups

    train(model, draw, num_rounds=12, steps_per_round=2, learning_rate=1e-2, beta=0.01)
    print(*[f"round {number:2}  reward {mean:.3f}" for number, mean in enumerate(means)], sep="\n")
    return means


if __name__ == "__main__":
    main()
