"""Makes trl_1_16.json, the numbers that test_trl.py holds Burnish to. Runs where TRL is installed, not in the tests.

<python with trl==1.16.0> tests/parity/make_trl.py tests/parity/trl_1_16.json
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
from trl import DPOConfig, DPOTrainer

sys.path.insert(0, str(Path(__file__).parent))
from trl_setup import BETA, OPTIONS, ROWS, gradient_norm, make_model, make_tokenizer


def make_trainer(output_dir: str, **options) -> DPOTrainer:
    """TRL's trainer in float64 on the CPU, with nothing on that changes a number."""
    config = DPOConfig(
        output_dir=output_dir,
        beta=BETA,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    return DPOTrainer(
        make_model(0.0),
        ref_model=make_model(1.0),
        args=config,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=make_tokenizer(),
    )


def measure(case: str, output_dir: str) -> dict:
    """The loss of each row alone, of all rows in one batch, and the norm of that batch's gradient."""
    trainer = make_trainer(output_dir, **OPTIONS[case])
    rows = [trainer.train_dataset[index] for index in range(len(ROWS))]
    with torch.no_grad():
        alone = [float(trainer.compute_loss(trainer.model, trainer.data_collator([row]))) for row in rows]
    batch = trainer.data_collator(rows)
    trainer.model.zero_grad()
    total = trainer.compute_loss(trainer.model, batch)
    total.backward()
    return {"alone": alone, "batch": float(total), "gradient_norm": gradient_norm(trainer.model)}


def tokens(output_dir: str) -> list[dict]:
    """What TRL made of the rows."""
    dataset = make_trainer(output_dir).train_dataset
    return [{name: list(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in dataset]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        smoothed = make_trainer(scratch, label_smoothing=0.2)
        with torch.no_grad():
            batch = smoothed.data_collator(list(smoothed.train_dataset))
            ignored = float(smoothed.compute_loss(smoothed.model, batch))
        frozen = {
            "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
            "beta": BETA,
            "tokens": tokens(scratch),
            "losses": {case: measure(case, scratch) for case in OPTIONS},
            "sigmoid_with_label_smoothing": ignored,
            "config_fields": sorted(field.name for field in fields(DPOConfig)),
        }
    output.write_text(json.dumps(frozen, indent=1) + "\n")


if __name__ == "__main__":
    main()
