"""PPO with torch alone: every line between sampled answers and new weights, of the policy and of its critic.

Each step is the one that `burnish.PPOTrainer` takes: the tests train both on the same answers and compare loss,
gradient norms and weights. transformers only holds the models here. Read it from top to bottom:

    draw -> log_probs of old policy and reference, values of the critic -> gae -> whiten -> token_losses -> train

Proximal policy optimisation (Schulman et al., 1707.06347) asks of each token whether it turned out better than the
critic had expected. With `r` the ratio of the policy to the one that drew the answers (old), A that surprise, V what
the critic says and R what it should have said, a token's loss

    -min(r A, clamp(r, 1 - epsilon, 1 + epsilon) A) + vf_coef * 1/2 max((V - R)², (V near its old value - R)²)

is averaged over all tokens of an optimizer step. What the policy's distance from the reference costs is taken off the
rewards, token by token (Ziegler et al., 1909.08593).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification


class Answer(NamedTuple):
    """A prompt, a sampled answer to it, both token ids, and its reward."""

    prompt: list[int]
    tokens: list[int]
    reward: float


class Row(NamedTuple):
    """One answer as it is trained on; all but the ids is (tokens,), and fixed when the round begins."""

    prompt: list[int]
    tokens: list[int]
    old: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class Step(NamedTuple):
    """What an optimizer step looked like before its weights changed."""

    loss: float
    policy_norm: float
    critic_norm: float


# 1. Tokens in, numbers out.


def padded(answers: Sequence[Answer | Row]) -> Tensor:
    """Prompts and answers, filled up on the right (rows, longest): a causal model looks to the left, at no padding."""
    rows = [answer.prompt + answer.tokens for answer in answers]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def of_answers(numbers: Tensor, answers: Sequence[Answer | Row]) -> list[Tensor]:
    """Of (rows, positions), what belongs to the tokens of each answer: the position before a token speaks of it."""
    starts = [len(answer.prompt) - 1 for answer in answers]
    return [numbers[i, start : start + len(answers[i].tokens)] for i, start in enumerate(starts)]


def log_probs(policy: nn.Module, answers: Sequence[Answer | Row]) -> list[Tensor]:
    """Log-probs of each answer's tokens in nats, (tokens,) each."""
    ids = padded(answers)
    every = policy(input_ids=ids).logits[:, :-1].log_softmax(-1)
    return of_answers(every.gather(2, ids[:, 1:, None]).squeeze(2), answers)


def values_of(critic: LlamaForSequenceClassification, answers: Sequence[Answer | Row]) -> list[Tensor]:
    """What the critic expects of each answer before each of its tokens, (tokens,) each."""
    hidden = critic.model(input_ids=padded(answers)).last_hidden_state
    return of_answers(critic.score(hidden).squeeze(2), answers)


# 2. Rewards in, advantages out.


def gae(values: Tensor, rewards: Tensor, gamma: float, lam: float) -> Tensor:
    """How much better each token turned out than expected: its own surprise, and a share of those that follow."""
    advantages = torch.zeros_like(values)
    surprise, following = torch.zeros(()), torch.zeros(())  # nothing follows the last token
    for t in reversed(range(len(values))):
        surprise = rewards[t] + gamma * following - values[t] + gamma * lam * surprise
        advantages[t], following = surprise, values[t]
    return advantages


def whiten(advantages: Sequence[Tensor]) -> list[Tensor]:
    """Mean 0 and variance 1 over all tokens of the round."""
    every = torch.cat(list(advantages))
    return [(own - every.mean()) / (every.var() + 1e-8).sqrt() for own in advantages]


@torch.no_grad()
def score(
    policy: nn.Module,
    critic: LlamaForSequenceClassification,
    reference: nn.Module,
    answers: Sequence[Answer],
    *,
    kl_coef: float,
    gamma: float,
    lam: float,
) -> list[Row]:
    """Everything about a round's answers that does not change while it is trained on."""
    old, fixed, values = log_probs(policy, answers), log_probs(reference, answers), values_of(critic, answers)
    rewards = [-kl_coef * (own - other) for own, other in zip(old, fixed, strict=True)]
    for answer, of_tokens in zip(answers, rewards, strict=True):
        of_tokens[-1] += answer.reward  # at the last real token
    advantages = [gae(v, r, gamma, lam) for v, r in zip(values, rewards, strict=True)]
    returns = [a + v for a, v in zip(advantages, values, strict=True)]
    columns = zip(answers, old, values, whiten(advantages), returns, strict=True)
    return [Row(answer.prompt, answer.tokens, *rest) for answer, *rest in columns]


# 3. The loss.


def token_losses(
    logps: Tensor, values: Tensor, row: Row, *, epsilon: float, cliprange_value: float, vf_coef: float
) -> Tensor:
    """Loss of each token of an answer, (tokens,): the policy's, and a share of the critic's."""
    ratio = (logps - row.old).exp()
    of_policy = -torch.minimum(ratio * row.advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * row.advantages)
    near = torch.clamp(values, row.values - cliprange_value, row.values + cliprange_value)
    of_critic = torch.maximum((values - row.returns) ** 2, (near - row.returns) ** 2) / 2
    return of_policy + vf_coef * of_critic


# 4. The optimizer, as transformers.Trainer sets it up.


def make_optimizer(models: Sequence[nn.Module], learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; matrices are pulled towards zero, the scales of norms, which are vectors, are not."""
    weights = [weight for model in models for weight in model.parameters()]
    matrices, vectors = ([p for p in weights if (p.ndim >= 2) is wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)


# 5. The loop.


def train(
    policy: nn.Module,
    critic: LlamaForSequenceClassification,
    draw: Callable[[nn.Module, int], list[Answer]],
    *,
    num_rounds: int,
    epochs: int = 4,
    steps_per_epoch: int = 1,
    reference: nn.Module | None = None,
    kl_coef: float = 0.05,
    gamma: float = 1.0,
    lam: float = 0.95,
    epsilon: float = 0.2,
    cliprange_value: float = 0.2,
    vf_coef: float = 0.1,
    learning_rate: float = 3e-6,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
) -> list[Step]:
    """Train `policy` and `critic` in place.

    Args:
        policy: without dropout.
        critic: a trunk with a head of one number, without dropout.
        draw: (policy, round) -> answers, sampled from the policy as it is now.
        num_rounds: how often answers are drawn.
        epochs: passes over the answers of a round.
        steps_per_epoch: optimizer steps that a pass is cut into.
        reference: the frozen policy that `kl_coef` pulls to; a copy of `policy` as it is now if None.
        kl_coef: what a nat of distance from it costs.
        gamma: discount of a token.
        lam: 1 trusts the rewards, 0 the critic.
        epsilon: how far a ratio may leave 1 before its token has no gradient.
        cliprange_value: how far a round may move an estimate of the critic.
        vf_coef: factor of the critic's loss.
        learning_rate: in the first step; it falls linearly to 0.
        weight_decay: of matrices.
        max_grad_norm: a longer gradient, of the policy or of the critic, is scaled down to this length.
    """
    reference = (copy.deepcopy(policy) if reference is None else reference).eval().requires_grad_(False)
    optimizer = make_optimizer([policy, critic], learning_rate, weight_decay)
    history: list[Step] = []
    for number in range(num_rounds):
        rows = score(policy, critic, reference, draw(policy, number), kl_coef=kl_coef, gamma=gamma, lam=lam)
        size = len(rows) // steps_per_epoch
        for start in [*range(0, len(rows), size)] * epochs:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - len(history) / (num_rounds * epochs * steps_per_epoch))
            step = rows[start : start + size]
            scored = zip(log_probs(policy, step), values_of(critic, step), step, strict=True)
            clips = {"epsilon": epsilon, "cliprange_value": cliprange_value, "vf_coef": vf_coef}
            losses = [token_losses(*numbers, row, **clips) for *numbers, row in scored]
            loss = torch.cat(losses).mean()  # over all tokens of the step
            loss.backward()
            norms = [nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm).item() for model in (policy, critic)]
            optimizer.step()
            optimizer.zero_grad()
            history.append(Step(loss.item(), *norms))
    return history


# 6. On a random model: it learns to answer with even numbers.


@torch.no_grad()
def sample_even(policy: nn.Module, number: int) -> list[Answer]:
    """64 answers, rewarded by the share of their tokens that are even; token 0 ends one."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(1, 50, (64, 1), generator=generator)
    for _ in range(6):
        probs = policy(input_ids=ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1, generator=generator)], dim=1)
    ended = [row[: row.index(0, 1) + 1] if 0 in row[1:] else row for row in ids.tolist()]
    return [Answer(row[:1], row[1:], sum(t % 2 == 0 for t in row[1:]) / len(row[1:])) for row in ended]


def main() -> list[float]:
    """Ten rounds of 64 answers, twice over in two optimizer steps; returns the mean reward of each round."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config, means = LlamaConfig(vocab_size=50, num_labels=1, pad_token_id=49, **size), []
    policy, critic = LlamaForCausalLM(config), LlamaForSequenceClassification(config)

    def draw(model: nn.Module, number: int) -> list[Answer]:
        answers = sample_even(model, number)
        means.append(sum(answer.reward for answer in answers) / 64)
        return answers

    train(policy, critic, draw, num_rounds=10, epochs=2, steps_per_epoch=2, learning_rate=1e-2, kl_coef=0.01)
    print(*[f"round {number:2}  reward {mean:.3f}" for number, mean in enumerate(means)], sep="\n")
    return means


if __name__ == "__main__":
    main()
