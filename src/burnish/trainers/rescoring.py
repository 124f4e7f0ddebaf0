"""What the trainer's own forward says of a round before it is trained on: old and reference log-probs, values.

Scored in the very parts that are trained on, so that the first ratio is exactly 1. Nothing is computed that no
part of the objective reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from burnish.importance import ImportanceWeights
from burnish.losses.selection import entropy_threshold, off_policy_mask, top_entropy_mask
from burnish.models.forward import forward
from burnish.runtime.distributed import gather_rows
from burnish.trainers.correction import bind_correction
from burnish.trainers.parts import cut, joined, neighbours, token_budget
from burnish.types import Mean, PolicyTokens, RolloutBatch, TokenBatch, TokenStats

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor, nn

    from burnish.models.reference import ModelReference
    from burnish.registry import Entry
    from burnish.trainers.policy_options import PolicyLossOptions
    from burnish.types import TokenLoss


@dataclass(frozen=True)
class Rescoring:
    """Which log-probs a round needs, and what is made of them.

    Attributes:
        rows: of a micro-batch.
        micro_batches: of an optimizer step.
        budget: the most tokens of a part of it, or None.
        need_old: whether the old policy's log-probs are needed: the policy moves before all of the round is trained
            on, or they are part of the reward or of a correction.
        top_entropy_quantile: the share of tokens that the policy loss reads; 1: all.
        off_policy_mask_threshold: of the mask for answers that the policy has left behind, or None.
        correction: (old, sampler, mask) -> importance weights, or None for no correction.
    """

    rows: int
    micro_batches: int
    budget: int | None
    need_old: bool
    top_entropy_quantile: float
    off_policy_mask_threshold: float | None
    correction: Callable[..., ImportanceWeights] | None

    @classmethod
    def of(cls, options: PolicyLossOptions, loss: Entry[..., TokenLoss], *, need_old: bool) -> Rescoring:
        """What a trainer's options and its loss ask for.

        Raises:
            ValueError: see `bind_correction`.
        """
        correction = bind_correction(options, loss)
        plan = options.round_plan()
        return cls(
            rows=plan.rows,
            micro_batches=plan.micro_batches,
            budget=token_budget(options),
            need_old=need_old or plan.total_steps > 1 or correction is not None or options.top_entropy_quantile < 1,
            top_entropy_quantile=options.top_entropy_quantile,
            off_policy_mask_threshold=options.off_policy_mask_threshold,
            correction=correction,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch: RolloutBatch,
        *,
        policy: Callable[[RolloutBatch, frozenset[str]], TokenStats],
        reference: ModelReference | None,
    ) -> tuple[RolloutBatch, dict[str, Mean]]:
        """The batch with what is needed, and the metrics of it.

        Args:
            batch: of a round.
            policy: a part, and what is needed beside log-probs -> what the policy says of it.
            reference: whose log-probs are needed, or None.
        """
        found: dict[str, Tensor] = {}
        metrics: dict[str, Mean] = {}
        if reference is not None:
            scored = self.in_parts(batch, lambda parcel: reference_logps(reference, parcel))
            found["ref_logps"] = scored["logps"]
        if self.need_old:
            needs = frozenset({"entropy"}) if self.top_entropy_quantile < 1 else frozenset[str]()
            stats = self.in_parts(batch, lambda parcel: numbers_of(policy(parcel, needs), parcel))
            found["old_logps"] = stats["logps"]
            if "values" in stats:
                found["values"], found["bootstrap_value"] = stats["values"], stats["bootstrap_value"][:, :1]
            if "entropy" in needs:
                found["policy_mask"] = self._top_entropy(stats["entropy"], batch)
        if self.correction is not None and batch.sampler_logps is not None:
            result = self.correction(found["old_logps"], batch.sampler_logps, batch.loss_mask)
            found["importance_weights"] = result.weights
            metrics = {name: mean_of_tokens(values, batch.loss_mask) for name, values in result.metrics.items()}
        return replace(batch, **found), metrics

    def kept(self, tokens: PolicyTokens, batch: RolloutBatch) -> Bool[Tensor, "N T1"] | None:
        """The tokens or answers that the policy loss reads; None for all."""
        keep = batch.policy_mask
        if self.off_policy_mask_threshold is not None and tokens.sampler_logps is not None:
            near = off_policy_mask(
                tokens.advantages,
                tokens.logps.detach(),
                tokens.sampler_logps,
                tokens.mask,
                off_policy_mask_threshold=self.off_policy_mask_threshold,
            )
            keep = near if keep is None else keep & near
        return keep

    def _top_entropy(self, entropy: Float[Tensor, "N T"], batch: RolloutBatch) -> Bool[Tensor, "N T"]:
        everywhere, _ = gather_rows(entropy[batch.loss_mask][:, None])  # (K, 1)
        threshold = entropy_threshold(everywhere.squeeze(1), top_entropy_quantile=self.top_entropy_quantile)
        return top_entropy_mask(entropy, batch.loss_mask, threshold)

    def in_parts(
        self, batch: RolloutBatch, score: Callable[[RolloutBatch], dict[str, Tensor]]
    ) -> dict[str, Float[Tensor, "N T"]]:
        """Statistics of all rows, part by part of each optimizer step."""
        whole: dict[str, Tensor] = {}
        for rows, part in self._parts(batch):
            for name, values in score(part).items():
                if name not in whole:
                    whole[name] = torch.zeros(batch.loss_mask.shape, dtype=values.dtype, device=values.device)
                whole[name][rows, : values.shape[1]] = values
        return whole

    def _parts(self, batch: RolloutBatch) -> Iterator[tuple[Int[Tensor, "K"], RolloutBatch]]:
        """The parts of all steps, each with the rows that it has of the round."""
        everything = torch.arange(len(batch), device=batch.row_id.device)
        for of_step in everything.split(self.rows * self.micro_batches):
            waiting = [(rows, batch.take(rows)) for rows in of_step.split(self.rows)]
            for count in neighbours([parcel for _, parcel in waiting], self.budget):
                now, waiting = waiting[:count], waiting[count:]
                rows, whole = torch.cat([rows for rows, _ in now]), joined([parcel for _, parcel in now])
                yield from ((rows[own], whole.take(own)) for own in cut(whole, self.budget))


def mean_of_tokens(values: Tensor, mask: Bool[Tensor, "N T"]) -> Mean:
    """The mean over trained tokens, or over answers that have one for (N, 1) values."""
    weight = mask if values.shape == mask.shape else mask.any(1, keepdim=True)
    return Mean.of(values, weight=weight.double())


def evaluated(model: nn.Module, parcel: RolloutBatch, needs: frozenset[str] = frozenset()) -> TokenStats:
    """What a model says of a parcel, in evaluation mode."""
    was_training = model.training
    model.eval()
    stats = forward(model, parcel, needs=needs, temperature=parcel.temperature)
    model.train(was_training)
    return stats


def numbers_of(stats: TokenStats, parcel: RolloutBatch) -> dict[str, Float[Tensor, "N T"]]:
    """Log-probs, and the entropy and a critic's values if they were computed."""
    found = {"logps": stats.logps}
    if stats.entropy is not None:
        found["entropy"] = stats.entropy
    if "values" in stats.extra:
        found |= split_values(stats.extra["values"], parcel)
    return found


def split_values(values: Float[Tensor, "N T1"], batch: TokenBatch) -> dict[str, Tensor]:
    """A critic's values: before each token, `values` (N, T), and after the last one, `bootstrap_value` (N, 1)."""
    ends = batch.completion_mask.sum(1, keepdim=True)  # (N, 1)
    return {"values": values[:, :-1], "bootstrap_value": values.gather(1, ends)}


def reference_logps(reference: ModelReference, parcel: RolloutBatch) -> dict[str, Tensor]:
    """The reference's log-probs of a parcel."""
    return {"logps": reference.score(parcel, temperature=parcel.temperature).logps}
