"""Casts of weights to bfloat16 are made once a step, and change neither losses nor gradients."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer, step_gradients

OPTIONS = {
    "bf16": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "token_budget": 0, "max_steps": 2,
}  # fmt: skip


class CountCasts(TorchDispatchMode):
    """Counts casts to bfloat16 by the storage that is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.counts[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


def casts_of_weights(trainer) -> list[int]:
    weights = {parameter.data_ptr() for name, parameter in trainer.model.named_parameters() if "proj" in name}
    with CountCasts() as casts:
        trainer.train()
    return [casts.counts[weight] for weight in weights]


def test_each_weight_is_cast_once_a_step(tmp_path):
    """Two steps, and the check before the first one."""
    assert casts_of_weights(make_trainer(tmp_path, dtype=torch.float32, ref_seed=None, **OPTIONS)) == [3] * 14


@pytest.fixture
def without_kept_casts():
    torch.set_autocast_cache_enabled(False)
    yield
    torch.set_autocast_cache_enabled(True)


def test_the_switch_casts_at_each_use(tmp_path, without_kept_casts):
    assert min(casts_of_weights(make_trainer(tmp_path, dtype=torch.float32, ref_seed=None, **OPTIONS))) >= 8


@pytest.mark.gallery
@pytest.mark.parametrize("options", [{}, {"loss_type": ["aot"]}, {"gradient_checkpointing": True}], ids=str)
def test_gradients_and_weights_are_the_same_bits(tmp_path, options):
    """`aot` scores the step without gradient first."""
    made = {}
    for keeps in (True, False):
        torch.set_autocast_cache_enabled(keeps)
        try:
            trainer = make_trainer(tmp_path / str(keeps), dtype=torch.float32, **OPTIONS, **options)
            made[keeps] = [*step_gradients(trainer), *(p.detach() for p in trainer.model.parameters())]
        finally:
            torch.set_autocast_cache_enabled(True)
    assert all(torch.equal(kept, cast) for kept, cast in zip(made[True], made[False], strict=True))
    assert float(made[True][0].norm()) > 0


def test_nothing_is_kept_after_a_run_that_fails(tmp_path):
    trainer = make_trainer(tmp_path, dtype=torch.float32, **OPTIONS)
    trainer.loss = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert torch.autocast_increment_nesting() == 1
    torch.autocast_decrement_nesting()
