"""The reference of a trainer that draws its own answers: another model that its loss may compare the policy with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from burnish.models.reference import ModelReference, Reference
from burnish.runtime.state import Stateful
from burnish.trainers.host import Host
from burnish.trainers.reference_options import choose_reference

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from burnish.models.divergence import Teacher
    from burnish.trainers.rollout_options import OnlineConfig
    from burnish.types import RolloutBatch


class OnlineReferenceMixin(Host):
    """`reference`, what a loss asks it, and its place in checkpoints. Without `reads_reference` there is none."""

    args: OnlineConfig
    reads_reference: ClassVar[bool] = False

    if TYPE_CHECKING:
        scorer: Any
        reference: Reference

    def wants_reference(self, options: Any) -> bool:
        """Whether there is a reference: the fact `reads_reference`, unless a subclass reads an option instead."""
        del options
        return self.reads_reference

    def why_no_reference(self) -> str:
        """What compares with no reference, and what to set for it to do so."""
        return f"{type(self).__name__} compares with no reference: state reads_reference = True in the class"

    def refuse_idle_reference(self, ref_model: Any, options: Any) -> None:
        """Before a model is loaded.

        Raises:
            ValueError: `ref_model` is given, and nothing reads it.
        """
        if ref_model is not None and not self.wants_reference(options):
            raise ValueError(f"ref_model is given, and {self.why_no_reference()}, or leave it out")

    def prepare_reference(self, ref_model: Any) -> None:
        """Choose the reference, once the policy is ready."""
        self.reference = choose_reference(
            self.policy,
            ref_model,
            self.args,
            need_reference=self.wants_reference(self.args),
            has_new_adapter=self.has_new_adapter,
        )

    @torch.no_grad()
    def compute_ref_log_probs(self, batch: RolloutBatch) -> Float[Tensor, "N T"]:
        """The reference's log-probs in nats at the temperature of the draw; exactly 0 outside `loss_mask`."""
        if batch.ref_logps is not None:
            return batch.ref_logps
        with self.accelerator.autocast():
            return self._model_reference().score(batch, temperature=batch.temperature).logps

    def compute_teacher(self, batch: RolloutBatch) -> Teacher:
        """The reference's hidden states and head, for the divergence from it: `forward(..., teacher=)`."""
        with torch.no_grad(), self.accelerator.autocast():
            return self._model_reference().teacher(batch)

    def _model_reference(self) -> ModelReference:
        if not isinstance(self.reference, ModelReference):
            raise ValueError(f"there is no reference to ask ({self.reference.description}): {self.why_no_reference()}")
        return self.reference

    def follow_policy(self) -> None:
        """After each optimizer step: a moving reference moves."""
        self.reference.follow(self.policy, step=self.state.global_step)

    def stateful(self) -> dict[str, Stateful]:
        """As in `PolicyTrainer`, and a reference that moves."""
        moving = {"reference": self.reference} if isinstance(self.reference, Stateful) else {}
        return {**super().stateful(), **moving}

    def binding(self) -> dict[str, Any]:
        """A resumed run must have the same reference and the same reward functions."""
        return {"reference": self.reference.fingerprint(), "reward_funcs": list(self.scorer.names)}
