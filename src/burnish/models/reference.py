"""References: where the log-probs of the frozen policy come from. Each is a callable, batch -> (N,) in nats."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Protocol

import torch

from burnish.models.forward import forward, install_forward

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from burnish.types import PreferenceBatch, TokenBatch, TokenStats

SAMPLED_VALUES = 64


class Reference(Protocol):
    """Log-probs of each row under the reference policy, without gradient."""

    @property
    def description(self) -> str:
        """What the reference is, for the report."""
        ...

    def fingerprint(self) -> str:
        """Changes with the reference's weights: a resumed run must have the same one."""
        ...

    def __call__(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        """Summed log-probs of the trained tokens of each row, in nats."""
        ...


class FrozenModel:
    """A model that is never trained: a copy of the policy, or one that was given.

    Args:
        model: with `install_forward`; set to evaluation mode, all parameters frozen.
        description: for the report.
    """

    def __init__(self, model: PreTrainedModel, *, description: str) -> None:
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.description = description

    def fingerprint(self) -> str:
        """Hash of every parameter's name and of 64 of its values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.named_parameters()):
            values = tensor.detach().flatten()
            sample = values[:: max(1, values.numel() // SAMPLED_VALUES)].double().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> TokenStats:
        """The reference's statistics of every trained token."""
        return forward(self.model, batch)

    def __call__(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        return self.score(batch).sequence_sum()


class FromColumns:
    """Log-probs that the data set brings along in `ref_chosen_logps` and `ref_rejected_logps`."""

    description = "columns ref_chosen_logps and ref_rejected_logps of the data set"

    def fingerprint(self) -> str:
        """The same for all: the fingerprint of the data set covers its columns."""
        return "columns"

    def __call__(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        if batch.ref_logps is None:
            raise ValueError(
                f"rows {batch.row_id.unique().tolist()} have no ref_chosen_logps and ref_rejected_logps, "
                "but the training rows have: add both columns to every data set, or drop them and pass ref_model"
            )
        return batch.ref_logps


def frozen_copy(model: PreTrainedModel) -> FrozenModel:
    """A copy of the policy as it is now, before the first step; also of a model that exists only in memory."""
    return FrozenModel(copy.deepcopy(model), description="copy of the policy, taken at construction")


def given_model(model: PreTrainedModel) -> FrozenModel:
    """A reference that the user passed as `ref_model`."""
    install_forward(model)
    return FrozenModel(model, description=f"the given ref_model, {type(model).__name__}")
