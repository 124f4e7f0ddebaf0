"""What a trainer with a reference does beside its loss: ask it, move it, score all rows once, resume with the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from burnish.models.refcache import Precomputed
from burnish.runtime.state import Stateful
from burnish.trainers.base import PolicyTrainer
from burnish.trainers.precompute import precompute

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float
    from torch import Tensor

    from burnish.models.reference import Reference
    from burnish.trainers.reference_options import ReferenceOptions
    from burnish.types import PreferenceBatch


class ReferringTrainer(PolicyTrainer):
    """A policy trainer with `reference`, which `make_reference` makes once the trainer is constructed. Abstract."""

    args: ReferenceOptions
    reference: Reference
    needs: frozenset[str] = frozenset()  # what the policy's forward computes beside log-probs
    needs_ref_tokens = False  # of precomputed log-probs: those of each token, not their sum

    @torch.no_grad()
    def compute_ref_log_probs(self, batch: PreferenceBatch) -> Float[Tensor, "N T1"]:
        """The reference's log-probs in nats: per token (N, T), or (N, 1) where only the sums of rows are known."""
        with self.accelerator.autocast():
            if self.reference.knows_tokens:
                return self.reference.token_logps(batch)
            return self.reference.logps(batch)[:, None]

    def follow_policy(self) -> None:
        """After each optimizer step: a moving reference moves."""
        self.reference.follow(self.accelerator.unwrap_model(self.model), step=self.state.global_step)

    def _open_run(self, found: Path | None) -> None:
        super()._open_run(found)
        if self.args.precompute_ref_log_probs and not isinstance(self.reference, Precomputed):
            scored = precompute(self)
            self.train_dataset, self.eval_dataset, self.reference = scored.train, scored.evaluation, scored.reference

    def stateful(self) -> dict[str, Stateful]:
        """As in `PolicyTrainer`, and a reference that moves."""
        moving = {"reference": self.reference} if isinstance(self.reference, Stateful) else {}
        return {**super().stateful(), **moving}

    def binding(self) -> dict[str, Any]:
        """A resumed run must have the same reference."""
        return {"reference": self.reference.fingerprint()}
