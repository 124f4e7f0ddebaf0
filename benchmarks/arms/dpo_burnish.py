"""Burnish's arm: one job of its DPOTrainer, in the environment that started the benchmark."""

from __future__ import annotations

from typing import Any

import torch
from dpo_measure import SIDES, Inputs, Logps, Row, run

from burnish import DPOConfig, DPOTrainer, PreferenceBatch
from burnish.types import PairLogps


def make_trainer(job: dict[str, Any], inputs: Inputs) -> DPOTrainer:
    return DPOTrainer(
        model=inputs.policy,
        ref_model=inputs.reference,
        args=DPOConfig(**inputs.options, cpu_tuning=job["cpu_tuning"]),
        train_dataset=job["rows"],
        processing_class=inputs.tokenizer,
    )


def record_logps(trainer: Any, logps: Logps) -> None:
    """Write the summed log-probs of the first micro-batch, in its order; it may be trained on in parts of another one.

    The check before the first step scores rows without gradient, and is left out.
    """
    loss, training_step = trainer.dpo_loss, trainer.training_step
    found: dict[int, list[float]] = {}

    def recording_loss(pair: PairLogps, batch: PreferenceBatch) -> Any:
        if torch.is_grad_enabled() and not logps:
            sides = torch.stack([pair.chosen, pair.rejected, pair.ref_chosen, pair.ref_rejected], dim=1)  # (M, 4)
            found.update(zip(_pair_ids(batch), sides.detach().double().tolist(), strict=True))
        return loss(pair, batch)

    def recording_step(model: Any, batch: PreferenceBatch, *args: Any, **kwargs: Any) -> Any:
        result = training_step(model, batch, *args, **kwargs)
        if not logps:
            columns = zip(*(found[row] for row in _pair_ids(batch)), strict=True)
            names = (f"{of}/{side}" for of in ("logps", "ref_logps") for side in SIDES)
            logps.update({name: list(values) for name, values in zip(names, columns, strict=True)})
        return result

    trainer.dpo_loss, trainer.training_step = recording_loss, recording_step


def _pair_ids(batch: PreferenceBatch) -> list[int]:
    """The data set's row of each pair."""
    return batch.row_id[batch.pairs[:, 0]].tolist()


def rows_of(batch: PreferenceBatch) -> tuple[list[Row], list[Row]]:
    """Chosen and rejected rows of a parcel, without its padding."""
    chosen, rejected = batch.pairs.unbind(1)
    return [_row(batch, index) for index in chosen.tolist()], [_row(batch, index) for index in rejected.tolist()]


def _row(batch: PreferenceBatch, index: int) -> Row:
    prompt, there = int(batch.prompt_index[index]), batch.completion_mask[index]
    prompt_ids = batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist()
    return Row(
        ids=prompt_ids + batch.completion_ids[index][there].tolist(),
        trained=[False] * len(prompt_ids) + batch.loss_mask[index][there].tolist(),
    )


if __name__ == "__main__":
    run(library="burnish", make_trainer=make_trainer, record_logps=record_logps, rows_of=rows_of)
