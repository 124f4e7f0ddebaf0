"""A reward model on two processes (gloo, DDP): the same gradients and metrics as on one, the head of an adapter too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from reward_training import graded_rows
from training import relative_distance

from ranks import train_on

MAKER = "reward_training:make_trainer"
OF_A_MICRO_BATCH = ("min_reward", "max_reward")


@pytest.mark.slow
@pytest.mark.parametrize("peft", [None, {"type": "lora", "r": 4, "target_modules": ["q_proj"]}], ids=["full", "lora"])
def test_two_processes_equal_one(tmp_path, peft):
    """7 graded rows, 4 a step as 1 x 2 on two ranks: in the last step a rank has fewer rows than the other."""
    options = {
        "rows": graded_rows(7),
        "peft": peft,
        "loss_type": ["plackett_luce", "regression"],
        "center_rewards_coefficient": 0.1,
    }
    one = train_on(1, tmp_path / "one", MAKER, **options)
    two = train_on(2, tmp_path / "two", MAKER, per_device_train_batch_size=1, gradient_accumulation_steps=2, **options)
    assert len(one[0]) == len(two[0]) == 2
    tolerance = 1e-11 if peft is None else 1e-5  # PEFT keeps its own weights in float32
    for mine, reference in zip(two[0], one[0], strict=True):
        assert relative_distance(mine, reference) < tolerance
    for mine, reference in zip(two[1], one[1], strict=True):
        if "grad_norm" in reference or "eval_loss" in reference:
            kept = [{k: v for k, v in line.items() if not k.endswith(OF_A_MICRO_BATCH)} for line in (mine, reference)]
            assert kept[0] == pytest.approx(kept[1], rel=1e-4 if peft else 1e-9, abs=1e-5 if peft else 1e-9)
