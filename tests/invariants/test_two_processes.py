"""Laws 1 and 3 on two processes (gloo, DDP): the same gradients and metrics as on one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from training import relative_distance

from ranks import train_on


def run(output: Path, processes: int, **options) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """A DPO training of `training.make_trainer`."""
    return train_on(processes, output, "training:make_trainer", **options)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["sigmoid", "sft"], ["aot"]], ids="+".join)
@pytest.mark.parametrize("cut", [(2, 1), (1, 2)], ids=["2x1", "1x2"])
def test_two_processes_equal_one(tmp_path, loss, cut):
    """4 pairs a step of 14: the last step has two pairs, and with 1 x 2 a rank is left without rows in it."""
    size, accumulation = cut
    options = {"loss_type": loss}
    one = run(tmp_path / "one", 1, **options)
    two = run(
        tmp_path / "two",
        2,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        **options,
    )
    assert len(one[0]) == len(two[0]) == 4
    for mine, reference in zip(two[0], one[0], strict=True):
        assert relative_distance(mine, reference) < 1e-11
    lines = zip(two[1], one[1], strict=True)
    for mine, reference in lines:
        if "grad_norm" in reference or "eval_loss" in reference:
            assert mine == pytest.approx(reference, rel=1e-9, abs=1e-9)


@pytest.mark.slow
def test_rows_that_do_not_fill_the_ranks(tmp_path):
    """13 rows as 1 x 4 on two processes: in the last step one rank has no row at all, and nothing counts twice."""
    from conftest import make_rows

    rows = make_rows(13)
    options = {"loss_type": ["sigmoid", "sft"], "rows": rows}
    one = run(tmp_path / "one", 1, per_device_train_batch_size=8, **options)
    two = run(tmp_path / "two", 2, per_device_train_batch_size=4, **options)
    assert len(one[0]) == len(two[0]) == 2
    for mine, reference in zip(two[0], one[0], strict=True):
        assert relative_distance(mine, reference) < 1e-11


@pytest.mark.slow
def test_bf16_autocast_sees_trunk_and_head(tmp_path):
    """Law 1: under bf16 autocast on two processes the gradient is bf16-close to float32's, and not equal to it."""
    options = {"dtype": "float32", "per_device_train_batch_size": 2}
    plain = run(tmp_path / "plain", 2, **options)
    low = run(tmp_path / "low", 2, bf16=True, **options)
    distance = relative_distance(low[0][0], plain[0][0])
    assert 1e-5 < distance < 5e-2
