"""SFT and KTO that are stopped and resumed are bit for bit the runs that were never stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from test_resume import StopAfter, metrics_in

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))
from answer_training import judged_rows, make_trainer

NUM_STEPS = 4


def trainer_at(method: str, directory: Path):
    return make_trainer(
        method,
        directory,
        rows=judged_rows(8),
        dtype=torch.float32,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=2,
        save_strategy="steps",
        save_steps=1,
        learning_rate=1e-2,
    )


@pytest.mark.parametrize("method", [pytest.param("sft", marks=pytest.mark.slow), "kto"])
@pytest.mark.parametrize("step", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_run_is_bit_identical(tmp_path, method, step):
    """Stopped in the middle of a log window and at its end."""
    whole = trainer_at(method, tmp_path / "whole")
    whole.train()
    assert whole.state.global_step == NUM_STEPS
    first = trainer_at(method, tmp_path / "run")
    first.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = trainer_at(method, tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert metrics_in(tmp_path / "run") == metrics_in(tmp_path / "whole")
