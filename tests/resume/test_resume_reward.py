"""A reward model that is stopped and resumed is bit for bit the one that was never stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from test_resume import StopAfter, metrics_in

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))
from reward_training import graded_rows, make_trainer

from burnish import RewardTrainer

LORA = {"type": "lora", "r": 4, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.2}
NUM_STEPS = 4


def trainer_at(directory: Path, peft: dict | None) -> RewardTrainer:
    return make_trainer(
        directory,
        rows=graded_rows(8),
        peft=peft,
        dtype=torch.float32,
        loss_type=["bradley_terry", "regression"],
        center_rewards_coefficient=0.01,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=2,
        save_strategy="steps",
        save_steps=1,
        learning_rate=1e-2,
        disable_dropout=peft is None,
    )


@pytest.mark.parametrize("peft", [None, pytest.param(LORA, marks=pytest.mark.gallery)], ids=["full", "lora"])
@pytest.mark.parametrize("step", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_run_is_bit_identical(tmp_path, peft, step):
    """Stopped in the middle of a log window and at its end; the head of an adapter is resumed with it."""
    whole = trainer_at(tmp_path / "whole", peft)
    whole.train()
    assert whole.state.global_step == NUM_STEPS
    first = trainer_at(tmp_path / "run", peft)
    first.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = trainer_at(tmp_path / "run", peft)
    resumed.train(resume_from_checkpoint=True)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert metrics_in(tmp_path / "run") == metrics_in(tmp_path / "whole")
