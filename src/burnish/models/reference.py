"""References: where the log-probs of the frozen policy come from. Each answers for a whole parcel, in nats.

Whatever a reference cannot say (a data set's summed log-probs know no tokens) it refuses with the fix.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import torch

from burnish.models.adapters import plain_model
from burnish.models.forward import forward, install_forward, teacher_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from burnish.models.divergence import Teacher
    from burnish.types import PreferenceBatch, TokenBatch, TokenStats

SAMPLED_VALUES = 64


class Reference(Protocol):
    """Log-probs of each row under the reference policy, without gradient."""

    @property
    def description(self) -> str:
        """What the reference is, for the report."""
        ...

    @property
    def knows_tokens(self) -> bool:
        """Whether `token_logps` can be asked for."""
        ...

    def fingerprint(self) -> str:
        """Changes with what the run began with: a resumed run must have the same reference."""
        ...

    def logps(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        """Summed log-probs of the trained tokens of each row, in nats."""
        ...

    def token_logps(self, batch: PreferenceBatch) -> Float[Tensor, "N T"]:
        """The same per token; exactly 0 outside `loss_mask`."""
        ...

    def teacher(self, batch: TokenBatch) -> Teacher:
        """Hidden states and head of the reference, for the divergence between two models."""
        ...

    def answering(self) -> AbstractContextManager[nn.Module | None]:
        """Gives, for as long as it is open, a model that answers as the reference; None if there are only numbers."""
        ...

    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Called after each optimizer step, counted from 1; a reference that stays does nothing."""
        ...


class ModelReference(ABC):
    """A reference that is a model: all of its answers come out of THE forward. Abstract: `score`, `teacher`."""

    description: str
    knows_tokens = True

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the reference's weights."""

    @abstractmethod
    def score(self, batch: TokenBatch, *, needs: Iterable[str] = (), temperature: float = 1.0) -> TokenStats:
        """The reference's statistics of every trained token, without gradient."""

    @abstractmethod
    def teacher(self, batch: TokenBatch) -> Teacher:
        """Hidden states and head of the reference."""

    def answering(self) -> AbstractContextManager[nn.Module | None]:
        """No model, unless a subclass has one."""
        return nullcontext()

    def logps(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        """Summed log-probs of each row."""
        return self.score(batch).sequence_sum()

    def token_logps(self, batch: PreferenceBatch) -> Float[Tensor, "N T"]:
        """Log-probs of each trained token."""
        return self.score(batch).logps

    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Stay as it is."""
        del policy, step


class FrozenModel(ModelReference):
    """A model that is never trained: a copy of the policy, or one that was given.

    Args:
        model: with `install_forward`; set to evaluation mode, all parameters frozen.
        description: for the report.
    """

    def __init__(self, model: PreTrainedModel, *, description: str) -> None:
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.description = description

    def answering(self) -> AbstractContextManager[nn.Module | None]:
        """The model."""
        return nullcontext(self.model)

    def fingerprint(self) -> str:
        """Hash of every parameter's name and of 64 of its values."""
        return sampled_fingerprint(self.model)

    @torch.no_grad()
    def score(self, batch: TokenBatch, *, needs: Iterable[str] = (), temperature: float = 1.0) -> TokenStats:
        """The model's statistics of every trained token."""
        return forward(self.model, batch, needs=needs, temperature=temperature)

    @torch.no_grad()
    def teacher(self, batch: TokenBatch) -> Teacher:
        """The model's hidden states and head."""
        return teacher_of(self.model, batch)


class FromColumns:
    """Log-probs that each row brings along: from the data set, or computed once before the run.

    Args:
        description: for the report.
        knows_tokens: the rows have them per token.
    """

    def __init__(
        self,
        description: str = "columns ref_chosen_logps and ref_rejected_logps of the data set",
        *,
        knows_tokens: bool = False,
    ) -> None:
        self.description = description
        self.knows_tokens = knows_tokens

    def fingerprint(self) -> str:
        """The same for all: the fingerprint of the data set covers its columns."""
        return "columns"

    def logps(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        """The rows' own numbers."""
        if batch.ref_token_logps is not None:
            return batch.ref_token_logps.sum(1)
        if batch.ref_logps is None:
            raise ValueError(
                f"rows {batch.row_id.unique().tolist()} have no ref_chosen_logps and ref_rejected_logps, "
                "but the training rows have: add both columns to every data set, or drop them and pass ref_model"
            )
        return batch.ref_logps

    def token_logps(self, batch: PreferenceBatch) -> Float[Tensor, "N T"]:
        """The rows' own numbers per token."""
        if batch.ref_token_logps is None:
            raise ValueError(
                f"rows {batch.row_id.unique().tolist()} have the reference's log-probs as sums, and they are needed "
                "per token: add ref_chosen_token_logps and ref_rejected_token_logps, or drop the columns"
            )
        return batch.ref_token_logps

    def answering(self) -> AbstractContextManager[nn.Module | None]:
        """No model: there are only numbers."""
        return nullcontext()

    def teacher(self, batch: TokenBatch) -> Teacher:
        """Refused: numbers have no hidden states."""
        raise ValueError(
            f"the divergence from the reference needs its model, and this one is: {self.description}. "
            "Drop the columns of reference log-probs, and switch precompute_ref_log_probs off."
        )

    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Stay as it is."""


class NoReference:
    """No reference: every log-prob is 0, so that a log-ratio is the policy's own log-prob.

    Args:
        description: why there is none, for the report.
    """

    knows_tokens = True

    def __init__(self, description: str) -> None:
        self.description = description

    def fingerprint(self) -> str:
        """The same for all."""
        return "none"

    def logps(self, batch: PreferenceBatch) -> Float[Tensor, "N"]:
        """Zeros."""
        return torch.zeros(len(batch), device=batch.completion_ids.device)

    def token_logps(self, batch: PreferenceBatch) -> Float[Tensor, "N T"]:
        """Zeros."""
        return torch.zeros(batch.completion_ids.shape, device=batch.completion_ids.device)

    def answering(self) -> AbstractContextManager[nn.Module | None]:
        """No model: there is no reference."""
        return nullcontext()

    def teacher(self, batch: TokenBatch) -> Teacher:
        """Refused: there is no other model."""
        raise ValueError(f"the divergence from the reference needs one: {self.description}. Set reference_free=False.")

    def follow(self, policy: nn.Module, *, step: int) -> None:
        """Stay as it is."""


def sampled_fingerprint(model: nn.Module) -> str:
    """Hash of every parameter's name and of 64 of its values: quick, and different for different training states."""
    return sampled_hash(model.named_parameters())


def sampled_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The same of any tensors with names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        values = tensor.detach().flatten()
        sample = values[:: max(1, values.numel() // SAMPLED_VALUES)].double().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def frozen_copy(model: PreTrainedModel) -> FrozenModel:
    """A copy of the policy as it is now, before the first step; also of a model that exists only in memory."""
    return FrozenModel(copy.deepcopy(model), description="copy of the policy, taken at construction")


def given_model(model: PreTrainedModel, *, prefix_sharing: str = "auto", lean_activations: str = "auto") -> FrozenModel:
    """A reference that the user passed as `ref_model`; the others as in `install_forward`."""
    install_forward(plain_model(model), prefix_sharing=prefix_sharing, lean_activations=lean_activations)
    return FrozenModel(model, description=f"the given ref_model, {type(model).__name__}")
