"""KTO: one reference point for the whole step, estimated from answers to other prompts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
from answer_training import judged_rows, make_trainer
from training import relative_distance, step_gradients

from burnish import KTOConfig
from burnish.data.errors import BadRowsError, DataError
from burnish.models.refcache import Precomputed
from burnish.trainers.kto import own_answers
from burnish.trainers.selfcheck import plain_logps
from conftest import make_model, make_rows

CUTS = [
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "token_budget": 90},
]


IGNORED = ("step_time", "epoch")


def log_lines(trainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def trained(trainer):
    """The gradients of a training, and its log lines without times."""
    gradients = step_gradients(trainer)
    return gradients, [{k: v for k, v in line.items() if k not in IGNORED} for line in log_lines(trainer)]


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_loss_and_metrics_are_those_of_plain_logits(tmp_path, loss):
    """Nine answers in one step: z, loss, rewards and margins from the models' own logits, to 1e-9."""
    options = {"rows": judged_rows(), "loss_type": loss, "desirable_weight": 2.0, "max_steps": 1}
    trainer = make_trainer("kto", tmp_path, per_device_train_batch_size=9, beta=0.05, **options)
    batch = trainer.data_collator(list(trainer.train_dataset))
    policy, reference = make_model(0, torch.float64), make_model(1, torch.float64)
    logps = torch.tensor([plain_logps(policy, batch, row) for row in range(len(batch))], dtype=torch.float64)
    ref = torch.tensor([plain_logps(reference, batch, row) for row in range(len(batch))], dtype=torch.float64)
    others = batch.columns.get("mismatched", torch.zeros(len(batch), dtype=torch.bool))
    z = (logps - ref)[others].mean().clamp(min=0) if bool(others.any()) else torch.tensor(0.0)
    ratio, good = (logps - ref)[~others], batch.columns["label"][~others] == 1
    expected = torch.where(good, 2 * (1 - torch.sigmoid(0.05 * (ratio - z))), 1 - torch.sigmoid(0.05 * (z - ratio)))
    trainer.train()
    (line,) = log_lines(trainer)
    assert line["loss"] == pytest.approx(expected.mean().item(), abs=1e-9)
    assert line.get("kl", 0.0) == pytest.approx(z.item(), abs=1e-9)
    assert line["rewards/chosen"] == pytest.approx(0.05 * ratio[good].mean().item(), abs=1e-9)
    assert line["rewards/rejected"] == pytest.approx(0.05 * ratio[~good].mean().item(), abs=1e-9)
    assert line["rewards/margins"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"], abs=1e-12)
    assert line["logps/chosen"] == pytest.approx(logps[~others][good].mean().item(), abs=1e-9)
    assert {"logits/chosen", "logits/rejected", "entropy", "truncated"} <= line.keys()
    assert loss != "kto" or z > 0, "the reference point must matter in this test"


@pytest.mark.parametrize("rows", [judged_rows(14), make_rows(14)], ids=["judged", "pairs"])
def test_cutting_a_step_changes_nothing(tmp_path, rows):
    """Gradients and metrics, the reference point among them; TRL's is one for each micro-batch."""
    whole, lines = trained(make_trainer("kto", tmp_path / "whole", rows=rows))
    assert max(line["kl"] for line in lines) > 0
    for number, cut in enumerate(CUTS):
        parts, lines_of_parts = trained(make_trainer("kto", tmp_path / str(number), rows=rows, **cut))
        assert len(whole) == len(parts) == 4
        assert max(map(relative_distance, parts, whole)) < 1e-11, cut
        for mine, reference in zip(lines_of_parts, lines, strict=True):
            assert mine == pytest.approx(reference, rel=1e-9, abs=1e-9), cut


def test_evaluation_has_one_reference_point(tmp_path):
    """The held-out rows are one step, whatever their micro-batches."""
    found = []
    for size in (1, 6):
        options = {"eval_rows": judged_rows(6), "per_device_eval_batch_size": size}
        trainer = make_trainer("kto", tmp_path / str(size), rows=judged_rows(), **options)
        found.append({k: v for k, v in trainer.evaluate().items() if "_per_second" not in k and "runtime" not in k})
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert found[0]["eval_kl"] > 0


def test_the_reference_point_is_at_least_zero(tmp_path):
    """With policy and reference swapped the mean log-ratio is below 0."""
    trainer = make_trainer("kto", tmp_path, rows=judged_rows(), max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    (prepared,) = trainer.prepare_step(trainer.model, [batch])
    model, other = trainer.model, trainer.reference.model
    with torch.no_grad():
        sums = trainer.score_mismatched(model, batch)
        trainer.reference.model = model
        swapped = trainer.score_mismatched(other, batch)
    (point,) = trainer.prepare_step(other, [batch])
    torch.testing.assert_close(swapped, torch.stack([-sums[0], sums[1]]))
    values = {float(prepared.columns["kl"][0]), float(point.columns["kl"][0])}
    assert min(values) == 0.0
    assert max(values) == pytest.approx(abs(float(sums[0] / sums[1])))


def test_answers_to_other_prompts_cost_no_gradient_and_count_for_nothing(tmp_path):
    trainer = make_trainer("kto", tmp_path, rows=judged_rows())
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch) == 8
    assert batch.counts()["row"] == 4
    assert batch.columns["mismatched"].sum() == 4
    kept = own_answers(batch)
    assert len(kept) == 4
    assert kept.counts()["row"] == 4
    assert kept.counts()["token"] == batch.counts()["token"]


def test_pairs_are_two_judged_answers_of_one_prompt(tmp_path):
    """A row of chosen and rejected: both labels, and both answers of another row behind them."""
    trainer = make_trainer("kto", tmp_path, rows=make_rows(6))
    batch = trainer.data_collator(list(trainer.train_dataset.select(range(2))))
    assert batch.columns["label"].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    assert batch.columns["mismatched"].tolist() == [False, False, True, True] * 2
    assert own_answers(batch).counts()["row"] == 4


def test_precomputed_log_probs_change_nothing(tmp_path, monkeypatch):
    """Those of the answers to other prompts are computed with the others."""
    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    plain, _ = trained(make_trainer("kto", tmp_path / "a", rows=judged_rows()))
    trainer = make_trainer("kto", tmp_path / "b", rows=judged_rows(), precompute_ref_log_probs=True)
    once, _ = trained(trainer)
    assert isinstance(trainer.reference, Precomputed)
    assert max(map(relative_distance, once, plain)) < 1e-9


def test_an_adapter_switched_off_is_the_reference(tmp_path):
    options = {"peft": {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]}, "ref_seed": None}
    settings = {"learning_rate": 3e-2, "num_train_epochs": 4, "dtype": torch.float32}
    trainer = make_trainer("kto", tmp_path, rows=judged_rows(12), **options, **settings)
    trainer.train()
    lines = log_lines(trainer)
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert lines[-1]["loss"] < 0.48
    assert lines[-1]["rewards/margins"] > 0


def test_the_first_step_is_checked(tmp_path):
    trainer = make_trainer("kto", tmp_path, rows=judged_rows())
    assert trainer.check_first_step(next(iter(trainer.get_train_dataloader())))["ok"]
    assert trainer.describe_method()["losses"] == [{"name": "kto", "paper": "2402.01306", "weight": 1.0}]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"prompt": "a", "completion": "b", "label": "yes"}], BadRowsError, "column 'label': is not true or false"),
        ([{"prompt": "a", "completion": "", "label": True}], BadRowsError, "column 'completion'"),
        ([{"prompt": "a", "completion": "b"}], DataError, "reads prompt, completion and label"),
        ([{"prompt": "a", "completion": c, "label": True} for c in "xy"], DataError, "all rows have the same prompt"),
    ],
    ids=["label", "completion", "columns", "one prompt"],
)
def test_rows_that_cannot_be_trained_on(tmp_path, rows, error, message):
    with pytest.raises(error, match=message):
        make_trainer("kto", tmp_path, rows=rows)


def test_options_that_are_refused(tmp_path):
    for options in (
        {"beta": 0.0},
        {"desirable_weight": -1.0},
        {"generate_during_eval": True},
        {"use_liger_loss": True},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            KTOConfig(output_dir=str(tmp_path), **options)
    from datasets import Dataset

    stream = Dataset.from_list(judged_rows()).to_iterable_dataset()
    with pytest.raises(ValueError, match="needs answers to other prompts"):
        make_trainer("kto", tmp_path, rows=stream, max_steps=1)
    assert (
        make_trainer("kto", tmp_path, rows=stream, max_steps=1, loss_type="apo_zero_unpaired").train().global_step == 1
    )
