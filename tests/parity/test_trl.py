"""Numbers of TRL 1.16, frozen by make_trl.py, which Burnish has to reproduce. TRL is not needed here.

Where the two libraries mean different things, and what is compared therefore:
- TRL averages the means of micro-batches, Burnish divides once by the count in the step: one batch is one step here.
- TRL's `sigmoid` ignores `label_smoothing` in 1.16; Burnish's reads it, as the paper says.
- `sft` of one row is the mean over its tokens in both; of a batch, over all its tokens in both.
- `aot` sorts one micro-batch in TRL and the whole step in Burnish.
- `bco_pair` follows the mean reward of past steps in Burnish and of none in 1.16: a first step is compared.
- WPO's weight of a pair is at most 1 in Burnish, as in its authors' code and TRL 0.25, and unbounded in TRL 1.16.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from trl_setup import BETA, LOSSES, OPTIONS, ROWS, gradient_norm, make_model, make_tokenizer

from burnish import DPOConfig, DPOTrainer
from burnish.runtime.state import RunningMeans

FROZEN = json.loads((Path(__file__).parent / "trl_1_16.json").read_text())


@pytest.fixture
def make_trainer(tmp_path):
    def make(**options) -> DPOTrainer:
        config = DPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            report_to="none",
            cpu_tuning="off",
            beta=BETA,
            **options,
        )
        return DPOTrainer(
            make_model(0.0),
            ref_model=make_model(1.0),
            args=config,
            train_dataset=ROWS,
            processing_class=make_tokenizer(),
        )

    return make


def batch_loss(trainer: DPOTrainer, rows: list[dict]) -> torch.Tensor:
    """The loss of a first optimizer step that is one batch, through the trainer's own path, without its optimizer."""
    trainer.running_means = RunningMeans(trainer.follows)
    (parcel,), counts = trainer.get_batch_samples(iter([trainer.data_collator(rows)]), 1, torch.device("cpu"))
    return trainer.compute_loss(trainer.model, parcel, num_items_in_batch=counts)


def test_the_file_says_what_it_came_from():
    assert FROZEN["versions"]["trl"] == "1.16.0"
    assert FROZEN["beta"] == BETA
    assert set(FROZEN["losses"]) == set(OPTIONS)


def test_tokens(make_trainer):
    """Prompt, answer and the end-of-sequence token that both libraries add to plain text."""
    dataset = make_trainer().train_dataset
    mine = [
        {
            "prompt_ids": list(row["prompt_input_ids"]),
            "chosen_ids": list(row["chosen_input_ids"]),
            "rejected_ids": list(row["rejected_input_ids"]),
        }
        for row in dataset
    ]
    assert mine == FROZEN["tokens"]
    assert all(all(row["chosen_loss_mask"]) and all(row["rejected_loss_mask"]) for row in dataset)


@pytest.mark.parametrize("loss", OPTIONS)
def test_loss_of_each_pair_and_gradient_of_a_batch(make_trainer, loss):
    trainer, frozen = make_trainer(**OPTIONS[loss]), FROZEN["losses"][loss]
    alone = [batch_loss(trainer, [row]).item() for row in trainer.train_dataset]
    assert alone == pytest.approx(frozen["alone"], rel=1e-5)
    total = batch_loss(trainer, list(trainer.train_dataset))
    total.backward()
    assert total.item() == pytest.approx(frozen["batch"], rel=1e-5)
    assert gradient_norm(trainer.model) == pytest.approx(frozen["gradient_norm"], rel=1e-5)


def test_the_numbers_tell_the_losses_apart():
    """A comparison at a reference equal to the policy would hold for any of them."""
    losses = FROZEN["losses"]
    assert all(abs(loss - 0.6931) > 0.01 for loss in losses["sigmoid"]["alone"])
    batch = sorted(losses[loss]["batch"] for loss in LOSSES)
    assert all(larger > smaller * (1 + 1e-4) for smaller, larger in pairwise(batch))


def test_label_smoothing_is_ignored_there_and_read_here(make_trainer):
    """b D of a pair follows from its loss log(1 + exp(-b D)) = l: -log(exp(l) - 1); e adds e b D to the mean."""
    plain = FROZEN["losses"]["sigmoid"]
    assert FROZEN["sigmoid_with_label_smoothing"] == pytest.approx(plain["batch"], rel=1e-6)
    logits = [-torch.tensor(loss, dtype=torch.float64).expm1().log() for loss in plain["alone"]]
    expected = plain["batch"] + 0.2 * float(sum(logits)) / len(logits)
    trainer = make_trainer(loss_type="sigmoid", label_smoothing=0.2)
    assert batch_loss(trainer, list(trainer.train_dataset)).item() == pytest.approx(expected, rel=1e-5)
