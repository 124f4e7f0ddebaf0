"""Law 3: however a step is cut, padded or ordered, its gradient, weights and metrics are the same."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from burnish.losses import preference_losses
from conftest import make_rows

sys.path.insert(0, str(Path(__file__).parent))
from training import NUM_ROWS, make_trainer, relative_distance, step_gradients

FAST = (["sigmoid"], ["aot"])
ALL = [*([name] for name in preference_losses), ["sigmoid", "sft"], ["aot", "sft"]]
LOSSES = [pytest.param(loss, marks=() if loss in FAST else pytest.mark.gallery, id="+".join(loss)) for loss in ALL]
SETTINGS = {"exo_pair": {"label_smoothing": 0.1}}
# Float32: about ten of its rounding errors; whether a split is exact is what float64 says.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
IGNORED = ("runtime", "per_second", "step_time", "epoch")  # transformers counts epochs in micro-batches


def metrics_of(trainer) -> list[dict[str, float]]:
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    return [{k: v for k, v in line.items() if not any(t in k for t in IGNORED)} for line in lines]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_does_not_depend_on_micro_batches(tmp_path, loss):
    """4 pairs a step as 1 x 4, 2 x 2 and 4 x 1; 14 rows, so the last step has two pairs."""
    check_splits(tmp_path, loss, torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["sigmoid"], ["aot"], ["sigmoid", "sft"]], ids="+".join)
def test_the_same_in_float32(tmp_path, loss):
    check_splits(tmp_path, loss, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "modifier",
    [{"use_weighting": True}, {"ld_alpha": 0.3}, {"rpo_alpha": 0.5}, {"f_divergence_type": "js_divergence"}],
    ids=lambda modifier: next(iter(modifier)),
)
def test_modifiers_change_the_gradient_and_no_split_does(tmp_path, modifier):
    modified = check_splits(tmp_path, ["sigmoid"], torch.float64, **modifier)
    plain = check_splits(tmp_path / "plain", ["sigmoid"], torch.float64)
    assert relative_distance(modified[0], plain[0]) > 1e-3


def check_splits(tmp_path, loss, dtype, **modifiers) -> list[torch.Tensor]:
    rows = [{**row, "margin": 0.5 + index % 3} for index, row in enumerate(make_rows(NUM_ROWS))]
    options = {"dtype": dtype, "loss_type": loss, "loss_weights": [1.0, 0.5][: len(loss)], "learning_rate": 0.0}
    options |= {"rows": rows, **SETTINGS.get(loss[0], {}), **modifiers}
    whole = step_gradients(make_trainer(tmp_path / "whole", **options))
    assert len(whole) == 4
    for size, accumulation in [(2, 2), (1, 4)]:
        cut = step_gradients(
            make_trainer(
                tmp_path / str(size),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                **options,
            )
        )
        assert len(cut) == len(whole)
        for mine, reference in zip(cut, whole, strict=True):
            assert relative_distance(mine, reference) < TOLERANCE[dtype]
    return whole


@pytest.mark.parametrize("loss", [["sigmoid", "sft"], pytest.param(["aot"], marks=pytest.mark.gallery)], ids="+".join)
def test_metrics_do_not_depend_on_micro_batches(tmp_path, loss):
    options = {"loss_type": loss, "loss_weights": [1.0] * len(loss), "logging_steps": 2}
    whole = make_trainer(tmp_path / "whole", **options)
    cut = make_trainer(tmp_path / "2", per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    whole.train()
    cut.train()
    for mine, reference in zip(metrics_of(cut), metrics_of(whole), strict=True):
        assert mine == pytest.approx(reference, rel=1e-9, abs=1e-9)


def test_padding_changes_nothing(tmp_path):
    plain = step_gradients(make_trainer(tmp_path / "1", learning_rate=0.0))
    padded = step_gradients(make_trainer(tmp_path / "2", learning_rate=0.0, pad_to_multiple_of=64))
    for mine, reference in zip(padded, plain, strict=True):
        assert relative_distance(mine, reference) < 1e-12


def test_padding_content_changes_nothing(tmp_path):
    """Whatever ids stand under the padding, the gradient is bit for bit the same."""
    trainer = make_trainer(tmp_path / "1")
    own = trainer.data_collator

    def garbage(rows):
        batch = own(rows)
        return replace(
            batch,
            prompt_ids=batch.prompt_ids.masked_fill(~batch.prompt_mask, 77),
            completion_ids=batch.completion_ids.masked_fill(~batch.completion_mask, 99),
        )

    trainer.data_collator = garbage
    clean = step_gradients(make_trainer(tmp_path / "2"))
    for mine, reference in zip(step_gradients(trainer), clean, strict=True):
        assert torch.equal(mine, reference)


def test_order_of_rows_changes_nothing(tmp_path):
    """All rows in one step, in two orders."""
    rows = make_rows(6)
    options = {"per_device_train_batch_size": 6, "learning_rate": 0.0, "loss_type": ["sigmoid", "aot"]}
    one = step_gradients(make_trainer(tmp_path / "1", rows=rows, **options))
    other = step_gradients(make_trainer(tmp_path / "2", rows=rows[::-1], **options))
    assert relative_distance(other[0], one[0]) < 1e-12


def test_a_pair_of_weight_zero_is_as_if_absent(tmp_path):
    """Its answers may even be broken: what has weight 0 is never read."""
    rows = [{**row, "weight": 1.0} for row in make_rows(4)]
    extra = {**make_rows(9)[8], "weight": 0.0}
    options = {"per_device_train_batch_size": 5, "learning_rate": 0.0}
    without = step_gradients(make_trainer(tmp_path / "1", rows=rows, **options))
    with_it = step_gradients(make_trainer(tmp_path / "2", rows=[*rows, extra], **options))
    assert relative_distance(with_it[0], without[0]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("loss", [["sigmoid", "sft"], ["ipo"]])
def test_a_pair_of_weight_two_is_as_if_there_twice(tmp_path, loss):
    """From the column through collation to the division, in any micro-batches."""
    rows, options = make_rows(4), {"per_device_train_batch_size": 5, "learning_rate": 0.0, "loss_type": loss}
    twice = step_gradients(make_trainer(tmp_path / "1", rows=[*rows, rows[2]], **options))
    weighted = [{**row, "weight": 1.0 + (index == 2)} for index, row in enumerate(rows)]
    for size, steps in ((5, 1), (1, 4)):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        found = step_gradients(make_trainer(tmp_path / f"w{size}", rows=weighted, **{**options, **cut}))
        assert relative_distance(found[0], twice[0]) < 1e-12


def test_the_loss_before_the_first_step_is_log_2(tmp_path):
    trainer = make_trainer(tmp_path, ref_seed=None, num_train_epochs=1)
    trainer.train()
    first = metrics_of(trainer)[0]
    assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-12)
    assert first["rewards/accuracies"] == 0.5


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path):
    rows = make_rows(7)
    results = []
    for size in (1, 3, 7):
        trainer = make_trainer(
            tmp_path / str(size), loss_type=["sigmoid", "sft", "aot"], per_device_eval_batch_size=size
        )
        metrics = trainer.evaluate(rows)
        results.append({k: v for k, v in metrics.items() if not any(t in k for t in IGNORED)})
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-10)


def test_number_of_steps_and_rows(tmp_path):
    """14 rows at 4 a step are 4 steps, and every row is seen once."""
    trainer = make_trainer(tmp_path)
    seen: list[int] = []
    own = trainer.data_collator
    trainer.data_collator = lambda rows: seen.extend(row["row_id"] for row in rows) or own(rows)
    trainer.train()
    assert trainer.state.global_step == 4
    assert sorted(seen) == list(range(NUM_ROWS))


def test_a_broken_pair_of_weight_zero_leaves_the_metrics_alone(tmp_path):
    rows = [{**row, "weight": 1.0, "ref_chosen_logps": -9.0, "ref_rejected_logps": -8.0} for row in make_rows(4)]
    broken = {**make_rows(9)[8], "weight": 0.0, "ref_chosen_logps": -1e30, "ref_rejected_logps": 1e30}
    options = {"per_device_train_batch_size": 5, "learning_rate": 0.0, "ref_seed": None}
    without, with_it = (
        make_trainer(tmp_path / "1", rows=rows, **options),
        make_trainer(tmp_path / "2", rows=[*rows, broken], **options),
    )
    without.train()
    with_it.train()
    mine, reference = metrics_of(with_it)[0], metrics_of(without)[0]
    assert {k: v for k, v in mine.items() if k != "num_tokens"} == pytest.approx(
        {k: v for k, v in reference.items() if k != "num_tokens"}, rel=1e-9
    )
