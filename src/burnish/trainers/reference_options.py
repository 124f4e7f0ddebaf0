"""Which reference a preference trainer has: decided here, once, from its options, its data and its model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from burnish.models.load import load_policy
from burnish.models.reference import FromColumns, NoReference, Reference, frozen_copy, given_model
from burnish.trainers.config import arg

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.trainers.dpo import DPOTrainer


@dataclass
class ReferenceOptions:
    """Options of the reference."""

    reference_free: bool = arg(False, "Compare with a uniform reference: its log-probs are 0.")


def make_reference(trainer: DPOTrainer, ref_model: str | PreTrainedModel | None) -> Reference:
    """The reference of a trainer whose model and data are ready.

    Raises:
        ValueError: two references at once, or the policy itself as one.
    """
    options, columns = trainer.args, [] if trainer.train_dataset is None else trainer.train_dataset.column_names
    if ref_model is not None and ref_model is trainer.model:
        raise ValueError("ref_model is the policy itself, which is trained: leave it out, and a frozen copy is taken")
    if options.reference_free:
        return NoReference("reference_free=True: every log-prob of the reference is 0")
    if ref_model is None and "ref_chosen_logps" in columns:
        return FromColumns()
    if ref_model is None and not trainer.losses.need_reference:
        return NoReference("none of the losses reads a reference: log-ratios are the policy's own log-probs")
    if ref_model is None:
        return frozen_copy(trainer.model)
    if "ref_chosen_logps" in columns:
        raise ValueError("ref_model is given, and the data set has ref_chosen_logps: leave out one of the two")
    reference = given_model(load_policy(ref_model, trust_remote_code=options.trust_remote_code))
    reference.model.to(options.device)
    return reference
