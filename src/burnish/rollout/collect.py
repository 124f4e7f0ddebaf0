"""Prompts -> the batch that is trained on: generate, score, re-score, credit.

    PromptRow (P) --generate--> Completion (N) --score--> RewardTable (N, F)
        --collate--> RolloutBatch --re-score--> with old and reference log-probs --credit--> with advantages

Each arrow is a function that the trainer hands in, so that overriding one of its methods changes the round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.data.collate import rollout_batch
from burnish.rollout.whole import WholeRound, gather_round
from burnish.types import Answers, Completion, RewardTable, RolloutBatch

if TYPE_CHECKING:
    from jaxtyping import Bool
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A row of a data set of prompts.

    Attributes:
        row_id: its number in the data set: its name in errors.
        ids: (l,) token ids of the prompt.
        prompt: text or messages, as the data set has it.
        columns: its other columns, for reward functions.
        epoch: of the visit: a round may go on with the next epoch, and have a row twice.
    """

    row_id: int
    ids: Tensor
    prompt: Any
    columns: Mapping[str, Any]
    epoch: int = 0

    @property
    def key(self) -> int:
        """What the randomness of its answers hangs on, beside the round: the row, and which visit to it this is."""
        return self.row_id + (self.epoch << 32)


@dataclass(frozen=True, kw_only=True)
class RolloutSteps:
    """The steps of a round.

    Attributes:
        generate: prompts -> G completions each, those of a prompt in a row.
        score: answers, T -> rewards.
        rescore: adds whatever the trainer's own forward says of the tokens: old and reference log-probs, values.
        shape: the rewards that advantages are made of, of those that were returned and the re-scored batch.
        credit: adds advantages, made of the rewards of all ranks.
    """

    generate: Callable[[Sequence[PromptRow]], list[Completion]]
    score: Callable[[Answers, int], RewardTable]
    rescore: Callable[[RolloutBatch], RolloutBatch]
    shape: Callable[[RewardTable, RolloutBatch], RewardTable]
    credit: Callable[[WholeRound, RolloutBatch], RolloutBatch]


@dataclass(frozen=True, kw_only=True)
class Refill:
    """Dynamic sampling: groups whose answers all have the same reward are replaced by groups of further prompts.

    Attributes:
        draw: number -> as many further prompts of this rank.
        most_missing: this rank's number of missing groups -> the most that any rank misses, so that all stay in step.
        max_attempts: how often further prompts are drawn for one round.

    Source: dynamic sampling, DAPO (2503.14476) section 3.2.
    """

    draw: Callable[[int], list[PromptRow]]
    most_missing: Callable[[int], int]
    max_attempts: int


@dataclass(frozen=True, kw_only=True)
class ScoredGroups:
    """Prompts, their completions in order, G each, and the rewards."""

    prompts: tuple[PromptRow, ...]
    completions: tuple[Completion, ...]
    rewards: RewardTable

    @property
    def num_samples(self) -> int:
        """Answers to each prompt."""
        return len(self.completions) // len(self.prompts)

    def answer_ids(self) -> list[tuple[int, ...]]:
        """The token ids of each answer."""
        return [tuple(completion.token_ids.tolist()) for completion in self.completions]

    def signal(self) -> Bool[Tensor, "P"]:
        """Whether the answers of a group differ in their total reward; unscored answers say nothing."""
        totals = self.rewards.total().view(len(self.prompts), -1)  # (P, G)
        highest = totals.nan_to_num(-torch.inf).amax(1)
        lowest = totals.nan_to_num(torch.inf).amin(1)
        return highest > lowest


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round was, on this rank.

    Attributes:
        batch: N rows with advantages, a group after the other.
        groups: the answers and rewards behind it.
        whole: the rewards of all ranks.
        num_replaced: groups without signal that dynamic sampling replaced.
        num_surplus: groups with signal that were more than needed, so that nothing came of them.
        seconds: of each phase: generate, score, rescore, credit.
    """

    batch: RolloutBatch
    groups: ScoredGroups
    whole: WholeRound
    num_replaced: int = 0
    num_surplus: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])


class Clock:
    """Adds up the seconds of named phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time inside belongs to `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def collect(
    prompts: Sequence[PromptRow],
    steps: RolloutSteps,
    *,
    tokenizer: PreTrainedTokenizerBase,
    pad_token_id: int,
    temperature: float,
    mask_truncated: bool = False,
    refill: Refill | None = None,
    device: torch.device | str = "cpu",
) -> Round:
    """One round over this rank's prompts.

    Args:
        prompts: of this rank, each once.
        steps: what is done.
        tokenizer: decodes the answers for the reward functions.
        pad_token_id: fills padding.
        temperature: that the answers are drawn at.
        mask_truncated: answers that were cut are not trained; they stay in the baseline of their group.
        refill: dynamic sampling, or None.
        device: where the batch lives.
    """
    clock = Clock()
    groups = generate_and_score(prompts, steps.generate, steps.score, tokenizer=tokenizer, clock=clock)
    groups, num_replaced, num_surplus = _refilled(groups, steps, refill, tokenizer=tokenizer, clock=clock)
    batch = rollout_batch(
        [prompt.ids for prompt in groups.prompts],
        groups.completions,
        row_ids=[prompt.row_id for prompt in groups.prompts],
        pad_token_id=pad_token_id,
        temperature=temperature,
        mask_truncated=mask_truncated,
    ).to(device)
    with clock.phase("rescore"):
        batch = steps.rescore(batch)
    with clock.phase("credit"):
        whole = gather_round(steps.shape(groups.rewards, batch), batch, returned=groups.rewards)
        batch = steps.credit(whole, batch)
    return Round(
        batch=batch,
        groups=groups,
        whole=whole,
        num_replaced=num_replaced,
        num_surplus=num_surplus,
        seconds=clock.seconds,
    )


def generate_and_score(
    prompts: Sequence[PromptRow],
    generate: Callable[[Sequence[PromptRow]], list[Completion]],
    score: Callable[[Answers, int], RewardTable],
    *,
    tokenizer: PreTrainedTokenizerBase,
    clock: Clock,
) -> ScoredGroups:
    """Answers to the prompts, and their rewards."""
    with clock.phase("generate"):
        completions = generate(prompts)
    answers = make_answers(prompts, completions, tokenizer)
    with clock.phase("score"):
        rewards = score(answers, max((len(completion) for completion in completions), default=0))
    return ScoredGroups(prompts=tuple(prompts), completions=tuple(completions), rewards=rewards)


def make_answers(
    prompts: Sequence[PromptRow], completions: Sequence[Completion], tokenizer: PreTrainedTokenizerBase
) -> Answers:
    """The completions as reward functions see them: text, or a message if the prompt is a conversation."""
    num_samples = len(completions) // max(len(prompts), 1)
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]
    ids = [completion.token_ids.tolist() for completion in completions]

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    texts = [decode(tokens) for tokens in ids]
    columns = repeated[0].columns if repeated else {}
    return Answers(
        prompts=[prompt.prompt for prompt in repeated],
        completions=[
            text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(repeated, texts, strict=True)
        ],
        completion_ids=ids,
        prompt_index=[index for index in range(len(prompts)) for _ in range(num_samples)],
        row_id=[prompt.row_id for prompt in repeated],
        turns=_turns(completions),
        columns={name: [prompt.columns[name] for prompt in repeated] for name in columns},
        truncated=[completion.is_truncated for completion in completions],
        decode=decode,
    )


def _turns(completions: Sequence[Completion]) -> list[list[int]] | None:
    if all(completion.turns is None for completion in completions):
        return None
    return [
        [0] * len(completion) if completion.turns is None else completion.turns.tolist() for completion in completions
    ]


def _refilled(
    groups: ScoredGroups,
    steps: RolloutSteps,
    refill: Refill | None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    clock: Clock,
) -> tuple[ScoredGroups, int, int]:
    """As many groups with signal as the budget gives, the rest as they came; how many were replaced, and left over."""
    if refill is None:
        return groups, 0, 0
    wanted, num_flat = len(groups.prompts), int((~groups.signal()).sum())
    for _ in range(refill.max_attempts):
        missing = refill.most_missing(wanted - min(int(groups.signal().sum()), wanted))
        if not missing:
            break
        drawn = refill.draw(missing)
        more = generate_and_score(drawn, steps.generate, steps.score, tokenizer=tokenizer, clock=clock)
        groups = joined(groups, more)
    signal = groups.signal()
    best_first = torch.argsort(~signal, stable=True)[:wanted]
    chosen = chosen_groups(groups, best_first.sort().values)
    num_kept_flat = int((~chosen.signal()).sum())
    return chosen, num_flat - num_kept_flat, max(int(signal.sum()) - wanted, 0)


def joined(first: ScoredGroups, second: ScoredGroups) -> ScoredGroups:
    """Two lots of groups in one."""
    return ScoredGroups(
        prompts=(*first.prompts, *second.prompts),
        completions=(*first.completions, *second.completions),
        rewards=first.rewards.joined(second.rewards),
    )


def chosen_groups(groups: ScoredGroups, chosen: Tensor) -> ScoredGroups:
    """Some of the groups, by their number; rewards of tokens are as wide as the longest of their answers."""
    rows = (chosen[:, None] * groups.num_samples + torch.arange(groups.num_samples)).flatten()  # (K,)
    completions = tuple(groups.completions[row] for row in rows.tolist())
    rewards = groups.rewards.take(rows)
    if rewards.token_rewards is not None:
        rewards = replace(rewards, token_rewards=rewards.token_rewards[:, : max(1, *map(len, completions))])
    return ScoredGroups(
        prompts=tuple(groups.prompts[index] for index in chosen.tolist()), completions=completions, rewards=rewards
    )
