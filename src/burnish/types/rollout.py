"""What a round of rollouts is made of: completions, their rewards, and the batch that is trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from burnish.types.batch import TokenBatch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, kw_only=True, eq=False)
class Completion:
    """One sampled answer, token by token, on the CPU.

    Attributes:
        prompt_ids: (l,) the prompt's token ids, without padding.
        token_ids: (t,) the answer's; the end-of-sequence token is part of it if it was drawn.
        logps: (t,) log-prob in nats of each token under the distribution that it was drawn from: after temperature,
            top-k, top-p and min-p, renormalised over what they kept. 0 for tokens that nobody drew (tool results).
        kept_mass: (t,) the probability, in (0, 1], that top-k, top-p and min-p kept; 1 if they are off. The
            log-prob under softmax(logits / temperature) is logps + log(kept_mass).
        loss_mask: (t,) False on tokens that the policy did not choose.
        turns: (t,) the turn of each token, counted from 0, or None for one turn.
        finish_reason: `stop` (an end-of-sequence token), `stop_string`, or `length` (cut at the limit).
        policy_version: optimizer steps of the policy that drew it.

    Example: token_ids [8, 2], logps [-0.7, -0.1], kept_mass [1, 1], finish_reason "stop".
    """

    prompt_ids: Int[Tensor, "l"]
    token_ids: Int[Tensor, "t"]
    logps: Float[Tensor, "t"]
    kept_mass: Float[Tensor, "t"]
    loss_mask: Bool[Tensor, "t"]
    turns: Int[Tensor, "t"] | None = None
    finish_reason: str = "stop"
    policy_version: int = 0

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def is_truncated(self) -> bool:
        """The answer did not end by itself."""
        return self.finish_reason == "length"


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What reward functions see: N answers with their prompts and the columns of their rows, in the order of rows.

    Attributes:
        prompts: (N) texts or message lists, as they are in the data set; the same for all answers of a group.
        completions: (N) texts, of all turns together, or for conversational prompts lists of one message with it,
            `{"role": "assistant", "content": text}`.
        completion_ids: (N) token ids of each.
        turns: (N) the turn of each token, or None for one turn each.
        prompt_index: (N) each answer's prompt, which is its group.
        row_id: (N) the row of the data set.
        columns: every other column of the data set, (N) values each.
        truncated: (N) the answer was cut at the limit.
        decode: token ids -> their text, or None where nobody knows it.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    prompt_index: Sequence[int]
    row_id: Sequence[int]
    turns: Sequence[Sequence[int]] | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    truncated: Sequence[bool] = ()
    decode: Callable[[Sequence[int]], str] | None = None

    def __len__(self) -> int:
        return len(self.completions)


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardTable:
    """What reward functions returned, one column a function.

    Attributes:
        rewards: (N, F) NaN where a function did not score an answer. A function that scores turns or spans has their
            sum here.
        names: (F) of the functions.
        weights: (F) the factor of each in the total.
        token_rewards: (N, T) weighted rewards that belong to single tokens, or None. Their sum over a row is part
            of the row's total already.
        extra: (N) what functions want to be shown beside each answer, by column.

    Example: rewards [[1.0, 0.5], [0.0, nan]], weights [1.0, 0.2]: total() [1.1, 0.0].
    """

    rewards: Float[Tensor, "N F"]
    names: tuple[str, ...]
    weights: Float[Tensor, "F"]
    token_rewards: Float[Tensor, "N T"] | None = None
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])

    @property
    def scored(self) -> Bool[Tensor, "N F"]:
        """Where a function gave a number."""
        return ~self.rewards.isnan()

    def total(self) -> Float[Tensor, "N"]:
        """The weighted sum of each answer over the functions that scored it; NaN if none did."""
        summed = (self.rewards.nan_to_num(0.0) * self.weights).sum(1)
        return torch.where(self.scored.any(1), summed, torch.nan)

    def _shown(self, name: str) -> Sequence[Any]:
        return self.extra.get(name, [None] * len(self.rewards))

    def take(self, rows: Int[Tensor, "K"]) -> RewardTable:
        """The table of some of its rows."""
        tokens = None if self.token_rewards is None else self.token_rewards[rows]
        picked: list[int] = rows.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        extra = {name: [values[row] for row in picked] for name, values in self.extra.items()}
        return replace(self, rewards=self.rewards[rows], token_rewards=tokens, extra=extra)

    def joined(self, other: RewardTable) -> RewardTable:
        """The rows of both tables of the same functions; rewards of tokens are 0 where one of them has none."""
        tables = (self, other)
        widths = [0 if table.token_rewards is None else table.token_rewards.shape[1] for table in tables]
        tokens = torch.zeros(len(self.rewards) + len(other.rewards), max(widths), dtype=self.rewards.dtype)
        for table, start, width in zip(tables, (0, len(self.rewards)), widths, strict=True):
            if table.token_rewards is not None:
                tokens[start : start + len(table.rewards), :width] = table.token_rewards
        names = dict.fromkeys((*self.extra, *other.extra))
        return replace(
            self,
            rewards=torch.cat([self.rewards, other.rewards]),
            token_rewards=tokens if max(widths) else None,
            extra={name: [*self._shown(name), *other._shown(name)] for name in names},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch(TokenBatch):
    """Sampled completions with what multiplies their gradient. `prompt_index` is the group.

    Attributes:
        advantages: (N, 1) one number an answer, or (N, T) one a token.
        old_logps: (N, T) nats, of the policy that made the rollout, scored by the trainer; None: the policy's own,
            detached, which is the same on the first pass over a fresh round.
        ref_logps: (N, T) nats, of the reference, or None.
        sampler_logps: (N, T) nats, of the engine that drew the tokens, under softmax(logits / temperature), so that
            they compare with `old_logps` whatever top-k, top-p and min-p kept; or None.
        importance_weights: (N, T) what corrects for the sampler being another distribution than the old policy, or
            None for 1 everywhere.
        policy_mask: (N, T) the tokens that the policy's objective reads, a subset of `loss_mask`; None: all of them.
        values: (N, T) the critic's estimates before each token, or None.
        returns: (N, T) what the critic is trained towards, or None.
        bootstrap_value: (N, 1) the critic's estimate after the last token of an answer that was cut, or None.
        temperature: of the distribution that all log-probs are of.
    """

    advantages: Float[Tensor, "N T1"]
    old_logps: Float[Tensor, "N T"] | None = None
    ref_logps: Float[Tensor, "N T"] | None = None
    sampler_logps: Float[Tensor, "N T"] | None = None
    importance_weights: Float[Tensor, "N T"] | None = None
    policy_mask: Bool[Tensor, "N T"] | None = None
    values: Float[Tensor, "N T"] | None = None
    returns: Float[Tensor, "N T"] | None = None
    bootstrap_value: Float[Tensor, "N 1"] | None = None
    temperature: float = 1.0

    row_fields: ClassVar[tuple[str, ...]] = (
        *TokenBatch.row_fields, "advantages", "old_logps", "ref_logps", "sampler_logps", "importance_weights",
        "policy_mask", "values", "returns", "bootstrap_value",
    )  # fmt: skip

    def unit_weights(self, per: str) -> Tensor:
        """As in `TokenBatch`; a row without a trained token has weight 0: it is in no average."""
        weights = super().unit_weights(per)
        return weights * self.loss_mask.any(1) if per == "row" else weights


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedBatch(RolloutBatch):
    """Sampled completions with supervised rows beside them, whose tokens are a unit of their own.

    Attributes:
        supervised: rows whose trained tokens are to become likelier, or None.

    Example: four sampled answers of three tokens, and two supervised ones of five: units `row` 4, `token` 12,
        `supervised_token` 10.
    """

    supervised: TokenBatch | None = None

    def take(self, rows: Int[Tensor, "K"]) -> MixedBatch:
        """As in `TokenBatch`; the supervised rows stay with the first row, so that parts have them once."""
        supervised = self.supervised if bool((rows == 0).any()) else None
        return replace(super().take(rows), supervised=supervised)

    def joined(self, others: Sequence[TokenBatch]) -> MixedBatch:
        """As in `TokenBatch`, with the supervised rows of all."""
        beside: list[Any] = [parcel["supervised"] for parcel in others]  # of its kind: all have some, or none
        own = None if self.supervised is None else self.supervised.joined(beside)
        return replace(super().joined(others), supervised=own)

    @property
    def units(self) -> tuple[str, ...]:
        """`row`, `token`, and `supervised_token` where there are supervised rows."""
        return super().units if self.supervised is None else (*super().units, "supervised_token")

    def unit_weights(self, per: str) -> Tensor:
        """As in `RolloutBatch`; `supervised_token`: (N, T) of the supervised rows."""
        if per == "supervised_token" and self.supervised is not None:
            return self.supervised.unit_weights("token")
        return super().unit_weights(per)

    def unit_rows(self, per: str) -> Int[Tensor, "N"]:
        """As in `TokenBatch`; supervised rows have a data set of their own."""
        if per == "supervised_token" and self.supervised is not None:
            return self.supervised.row_id
        return super().unit_rows(per)

    @property
    def num_input_tokens(self) -> Int[Tensor, ""]:
        """Those of the supervised rows included."""
        own = super().num_input_tokens
        return own if self.supervised is None else own + self.supervised.num_input_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyTokens:
    """All that a policy loss sees. Padding and untrained tokens are False in `mask`, and may hold anything finite.

    Attributes:
        logps: (N, T) the policy's log-probs in nats, with gradient.
        old_logps: (N, T) those of the policy that made the rollout, without.
        advantages: (N, 1) or (N, T).
        mask: (N, T) the tokens that are trained.
        log_ratio: (N, T), or (N, 1) for a whole answer: log of the ratio that the loss weights with, with gradient;
            see `burnish.losses.policy.with_ratio`. None until it is chosen.
        sampler_logps: (N, T) those of the engine that drew the tokens, or None.
        importance_weights: (N, T) sampler correction, without gradient, or None for 1.
        entropy: (N, T) nats, with gradient, or None if not asked for.
    """

    logps: Float[Tensor, "N T"]
    old_logps: Float[Tensor, "N T"]
    advantages: Float[Tensor, "N T1"]
    mask: Bool[Tensor, "N T"]
    log_ratio: Float[Tensor, "N T2"] | None = None
    sampler_logps: Float[Tensor, "N T"] | None = None
    importance_weights: Float[Tensor, "N T"] | None = None
    entropy: Float[Tensor, "N T"] | None = None

    @property
    def required_log_ratio(self) -> Float[Tensor, "N T2"]:
        """`log_ratio`, for losses that weight with it."""
        if self.log_ratio is None:
            raise ValueError("the ratio is not chosen: call with_ratio(tokens, level) first")
        return self.log_ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenLoss:
    """What a policy loss returns.

    Attributes:
        losses: (N, T) per token, or (N, 1) per answer; unreduced, lower is better.
        metrics: 0/1 or other numbers per token (N, T) or per answer (N, 1), without gradient; the mean over trained
            tokens, or over answers, is logged.
    """

    losses: Float[Tensor, "N T1"]
    metrics: Mapping[str, Float[Tensor, "N T1"]] = field(default_factory=dict[str, Tensor])
