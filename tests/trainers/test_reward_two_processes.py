"""A reward model on two processes (gloo, DDP): the same gradients and metrics as on one, the head of an adapter too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from reward_training import graded_rows
from training import relative_distance

IGNORED = ("runtime", "per_second", "step_time", "epoch", "min_reward", "max_reward")  # the last two: of a micro-batch


def run(output: Path, processes: int, **options) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    output.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    script = Path(__file__).with_name("reward_two_processes.py")
    command = [sys.executable, *launcher, str(script), str(output), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((output / "log.json").read_text())
    kept = [{k: v for k, v in line.items() if not any(word in k for word in IGNORED)} for line in log]
    return torch.load(output / "gradients.pt", weights_only=True), kept


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
    one = run(tmp_path / "one", 1, **options)
    two = run(tmp_path / "two", 2, per_device_train_batch_size=1, gradient_accumulation_steps=2, **options)
    assert len(one[0]) == len(two[0]) == 2
    tolerance = 1e-11 if peft is None else 1e-5  # PEFT keeps its own weights in float32
    for mine, reference in zip(two[0], one[0], strict=True):
        assert relative_distance(mine, reference) < tolerance
    for mine, reference in zip(two[1], one[1], strict=True):
        if "grad_norm" in reference or "eval_loss" in reference:
            assert mine == pytest.approx(reference, rel=1e-4 if peft else 1e-9, abs=1e-5 if peft else 1e-9)
