"""PPO-ptx: supervised rows beside the sampled ones, so that the policy does not forget how to do what it was not asked.

    loss = ... + ptx_coef x mean over supervised tokens of -log policy(token)

Source: InstructGPT (2203.02155) eq. 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from burnish.data.prompt_stream import PromptStream
from burnish.data.supervised import SupervisedReport, SupervisedRow, supervised_batch
from burnish.types import MixedBatch, RolloutBatch, Term, TokenStats

if TYPE_CHECKING:
    import torch

SEED_OF_ROWS = 0x707478  # so that their order is not that of the prompts


class SupervisedStream:
    """The cursor over supervised rows: what each optimizer step gets of them, the same on any number of ranks.

    Args:
        rows: prepared.
        report: of their preparation.
        batch_size: rows of a micro-batch.
        pad_token_id: fills the padding.
        seed: of their order, another one in every epoch.
    """

    def __init__(
        self, rows: Sequence[SupervisedRow], report: SupervisedReport, *, batch_size: int, pad_token_id: int, seed: int
    ) -> None:
        self.rows, self.report = rows, report
        self.batch_size, self.pad_token_id = batch_size, pad_token_id
        self.stream = PromptStream(len(rows), seed=seed ^ SEED_OF_ROWS)

    def beside(
        self, parcels: Sequence[RolloutBatch], *, rank: int, size: int, device: torch.device
    ) -> list[MixedBatch]:
        """This rank's micro-batches of a step, with supervised rows in each."""
        drawn = self.stream.take(self.batch_size * len(parcels) * size)[rank::size]
        mixed: list[MixedBatch] = []
        for index, parcel in enumerate(parcels):
            visits = drawn[index * self.batch_size : (index + 1) * self.batch_size]
            supervised = supervised_batch([self.rows[visit.row] for visit in visits], self.pad_token_id).to(device)
            mixed.append(MixedBatch(**{f.name: parcel[f.name] for f in fields(parcel)}, supervised=supervised))
        return mixed

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.stream.load_state_dict(state)


def supervised_term(stats: TokenStats, *, coefficient: float) -> tuple[Term, ...]:
    """The term of a micro-batch's supervised rows, if it has any."""
    logps = stats.extra.get("supervised_logps")
    if logps is None:
        return ()
    return (Term(name="ptx", losses=-logps, per="supervised_token", coefficient=coefficient),)
