"""The peer's arm: one job of TRL's DPOTrainer, in the peer's environment."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from dpo_measure import SIDES, Inputs, Logps, Row, run
from trl import DPOConfig, DPOTrainer


def make_trainer(job: dict[str, Any], inputs: Inputs) -> DPOTrainer:
    # The rows stand in the order of Burnish's sampler, which is not TRL's: TRL takes them as they stand.
    return DPOTrainer(
        model=inputs.policy,
        ref_model=inputs.reference,
        args=DPOConfig(**inputs.options, train_sampling_strategy="sequential"),
        train_dataset=Dataset.from_list(job["ordered_rows"]),
        processing_class=inputs.tokenizer,
    )


def record_logps(trainer: Any, logps: Logps) -> None:
    """Write the summed log-probs of the first micro-batch. Those of a cached reference stand in the batch."""
    record_next_forward(trainer.model, logps, "logps")
    if not trainer.precompute_ref_logps:
        record_next_forward(trainer.ref_model, logps, "ref_logps")
        return
    training_step = trainer.training_step

    def recording_step(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        for side in SIDES:
            logps.setdefault(f"ref_logps/{side}", batch[f"ref_{side}_logps"].double().tolist())
        return training_step(model, batch, *args, **kwargs)

    trainer.training_step = recording_step


def record_next_forward(model: Any, logps: Logps, name: str) -> None:
    """Write the summed log-probs of the model's next forward, whose first half is the chosen rows."""

    def write(module: Any, inputs: Any, outputs: Any) -> None:
        del module, inputs
        halves = outputs.log_probs.detach().double().sum(1).chunk(2)
        logps.update({f"{name}/{side}": half.tolist() for side, half in zip(SIDES, halves, strict=True)})
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
    run(library="trl", make_trainer=make_trainer, record_logps=record_logps, rows_of=rows_of)
