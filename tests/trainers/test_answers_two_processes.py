"""SFT and KTO on two processes (gloo, DDP): the same gradients and metrics as on one, the reference point too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from answer_training import judged_rows
from training import relative_distance

from ranks import train_on


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["answer_training:make_sft", "answer_training:make_kto"])
def test_two_processes_equal_one(tmp_path, maker):
    """13 rows, 4 a step as 1 x 2 on two ranks: in the last step one rank has no row, and nothing counts twice."""
    options = {"rows": judged_rows(13), "eval_rows": judged_rows(5)}
    one = train_on(1, tmp_path / "one", maker, **options)
    two = train_on(2, tmp_path / "two", maker, per_device_train_batch_size=1, gradient_accumulation_steps=2, **options)
    assert len(one[0]) == len(two[0]) == 4
    for mine, reference in zip(two[0], one[0], strict=True):
        assert relative_distance(mine, reference) < 1e-11
    lines = [pair for pair in zip(two[1], one[1], strict=True) if {"grad_norm", "eval_loss"} & pair[1].keys()]
    assert len(lines) == 5
    for mine, reference in lines:
        assert mine == pytest.approx(reference, rel=1e-9, abs=1e-9)
