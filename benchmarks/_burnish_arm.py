"""Burnish's arm: one job of its DPOTrainer, in the environment that started the benchmark."""

from __future__ import annotations

from typing import Any

import torch
from _measure import Row, load_models, read_job, run, training_options

from burnish import DPOConfig, DPOTrainer, PreferenceBatch


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    policy, reference, tokenizer = load_models(job)
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**training_options(job), cpu_tuning=job["cpu_tuning"]),
        train_dataset=job["rows"],
        processing_class=tokenizer,
    )
    logps: dict[str, list[float]] = {}
    record_first_logps(trainer, logps)
    run(job, trainer, library="burnish", rows_of=rows_of, logps=logps)


def record_first_logps(trainer: Any, logps: dict[str, list[float]]) -> None:
    """Write the summed log-probs of the first micro-batch that is trained on.

    The check before the first step scores the same rows without gradient, and is left out.
    """
    score_policy, score_reference = trainer.concatenated_forward, trainer.compute_ref_log_probs

    def write(name: str, row_logps: torch.Tensor, batch: PreferenceBatch) -> None:
        if torch.is_grad_enabled() and f"{name}/chosen" not in logps:
            chosen, rejected = row_logps.detach().double()[batch.pairs].unbind(1)
            logps.update({f"{name}/chosen": chosen.tolist(), f"{name}/rejected": rejected.tolist()})

    def recording_policy(model: Any, batch: PreferenceBatch) -> Any:
        stats = score_policy(model, batch)
        write("logps", stats.sequence_sum(), batch)
        return stats

    def recording_reference(batch: PreferenceBatch) -> torch.Tensor:
        row_logps = score_reference(batch)
        write("ref_logps", row_logps, batch)
        return row_logps

    trainer.concatenated_forward = recording_policy
    trainer.compute_ref_log_probs = recording_reference


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
    main()
