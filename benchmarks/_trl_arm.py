"""The peer's arm: one job of TRL's DPOTrainer, in the peer's environment."""

from __future__ import annotations

from typing import Any

import torch
from _measure import Row, load_models, read_job, run, training_options
from datasets import Dataset
from trl import DPOConfig, DPOTrainer


def main() -> None:
    job = read_job()
    torch.set_num_threads(job["threads"])
    policy, reference, tokenizer = load_models(job)
    # The rows stand in the order of Burnish's sampler, which is not TRL's: TRL takes them as they stand.
    options = {**training_options(job), "train_sampling_strategy": "sequential"}
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(**options),
        train_dataset=Dataset.from_list(job["ordered_rows"]),
        processing_class=tokenizer,
    )
    logps: dict[str, list[float]] = {}
    record_first_logps(trainer.model, logps, names=("logps/chosen", "logps/rejected"))
    record_first_logps(trainer.ref_model, logps, names=("ref_logps/chosen", "ref_logps/rejected"))
    run(job, trainer, library="trl", rows_of=rows_of, logps=logps)


def record_first_logps(model: Any, logps: dict[str, list[float]], *, names: tuple[str, str]) -> None:
    """Write the summed log-probs of the model's next forward, whose first half is the chosen rows."""

    def write(module: Any, inputs: Any, outputs: Any) -> None:
        del module, inputs
        halves = outputs.log_probs.detach().double().sum(1).chunk(2)
        logps.update({name: half.tolist() for name, half in zip(names, halves, strict=True)})
        handle.remove()

    handle = model.register_forward_hook(write)


def rows_of(batch: Any) -> tuple[list[Row], list[Row]]:
    """Chosen and rejected rows of a padded micro-batch, in which all chosen ones come first."""
    present, trained = batch["attention_mask"].bool(), batch["completion_mask"].bool()
    rows = [
        Row(ids[there].tolist(), mask[there].tolist())
        for ids, mask, there in zip(batch["input_ids"], trained, present, strict=True)
    ]
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


if __name__ == "__main__":
    main()
