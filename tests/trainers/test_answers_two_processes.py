"""SFT and KTO on two processes (gloo, DDP): the same gradients and metrics as on one, the reference point too."""

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
from answer_training import judged_rows
from training import relative_distance

IGNORED = ("runtime", "per_second", "step_time", "epoch")


def run(method: str, output: Path, processes: int, **options) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    output.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    script = Path(__file__).with_name("answers_two_processes.py")
    command = [sys.executable, *launcher, str(script), method, str(output), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((output / "log.json").read_text())
    kept = [{k: v for k, v in line.items() if not any(word in k for word in IGNORED)} for line in log]
    return torch.load(output / "gradients.pt", weights_only=True), kept


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "kto"])
def test_two_processes_equal_one(tmp_path, method):
    """13 rows, 4 a step as 1 x 2 on two ranks: in the last step one rank has no row, and nothing counts twice."""
    options = {"rows": judged_rows(13), "eval_rows": judged_rows(5)}
    one = run(method, tmp_path / "one", 1, **options)
    two = run(method, tmp_path / "two", 2, per_device_train_batch_size=1, gradient_accumulation_steps=2, **options)
    assert len(one[0]) == len(two[0]) == 4
    for mine, reference in zip(two[0], one[0], strict=True):
        assert relative_distance(mine, reference) < 1e-11
    lines = [pair for pair in zip(two[1], one[1], strict=True) if {"grad_norm", "eval_loss"} & pair[1].keys()]
    assert len(lines) == 5
    for mine, reference in lines:
        assert mine == pytest.approx(reference, rel=1e-9, abs=1e-9)
