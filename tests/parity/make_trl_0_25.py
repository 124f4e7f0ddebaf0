"""Makes trl_0_25.json, the numbers that test_trl_0_25.py holds Burnish to. Runs where TRL is installed, not in the tests.

<python with trl==0.25.1> tests/parity/make_trl_0_25.py tests/parity/trl_0_25.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from trl import CPOConfig, CPOTrainer, DPOConfig, DPOTrainer, ORPOConfig, ORPOTrainer

sys.path.insert(0, str(Path(__file__).parent))
from trl_setup import BETA, OPTIONS_0_25, ROWS, gradient_norm, make_model, make_tokenizer

TRAINERS = {"dpo": (DPOConfig, DPOTrainer), "cpo": (CPOConfig, CPOTrainer), "orpo": (ORPOConfig, ORPOTrainer)}


def make_trainer(method: str, output_dir: str, **options):
    """TRL's trainer in float64 on the CPU, with nothing on that changes a number."""
    config_class, trainer_class = TRAINERS[method]
    config = config_class(
        output_dir=output_dir,
        beta=BETA,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    reference = {"ref_model": make_model(1.0)} if method == "dpo" else {}
    return trainer_class(
        make_model(0.0),
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=make_tokenizer(),
        **reference,
    )


def loss_of(trainer, rows: list[dict]) -> torch.Tensor:
    """The loss of rows as one batch; a running mean starts anew.

    ORPO's likelihood term is taken from the answers' mean log-probs: the trainer's own runs over the prompt as well.
    """
    if hasattr(trainer, "running"):
        trainer.running = type(trainer.running)(trainer.accelerator)
    batch = trainer.data_collator(rows)
    if isinstance(trainer, DPOTrainer):
        return trainer.get_batch_loss_metrics(trainer.model, batch, train_eval="train")[0]
    if isinstance(trainer, ORPOTrainer):
        chosen, rejected, *_ = trainer.concatenated_forward(trainer.model, batch)
        return (-chosen - trainer.odds_ratio_loss(chosen, rejected)[0]).mean()
    return trainer.compute_loss(trainer.model, batch)


def measure(case: str, output_dir: str) -> dict:
    """The loss of each row alone, of all rows in one batch, and the norm of that batch's gradient."""
    method, options = OPTIONS_0_25[case]
    trainer = make_trainer(method, output_dir, **options)
    rows = [trainer.train_dataset[index] for index in range(len(ROWS))]
    with torch.no_grad():
        alone = [float(loss_of(trainer, [row])) for row in rows]
    trainer.model.zero_grad()
    total = loss_of(trainer, rows)
    total.backward()
    return {"alone": alone, "batch": float(total), "gradient_norm": gradient_norm(trainer.model)}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        dataset = make_trainer("dpo", scratch).train_dataset
        names = ("prompt_input_ids", "chosen_input_ids", "rejected_input_ids")
        frozen = {
            "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
            "beta": BETA,
            "tokens": [{name: list(row[name]) for name in names} for row in dataset],
            "losses": {case: measure(case, scratch) for case in OPTIONS_0_25},
            "config_fields": sorted(field.name for field in fields(DPOConfig)),
        }
    output.write_text(json.dumps(frozen, indent=1) + "\n")


if __name__ == "__main__":
    main()
