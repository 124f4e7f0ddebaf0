from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from burnish import DPOConfig, DPOTrainer
from burnish.trainers.selfcheck import plain_logps
from conftest import make_model, make_rows, make_tokenizer

LOG_2 = math.log(2)


class ShiftedTrainer(DPOTrainer):
    """A trainer whose log-probs belong to the token before: the fault that the check is there for."""

    def concatenated_forward(self, model, batch):
        stats = super().concatenated_forward(model, batch)
        return replace(stats, logps=stats.logps.roll(1, dims=1) * 0.9)


@pytest.fixture
def make_trainer(tmp_path):
    def make(trainer_class=DPOTrainer, rows=None, **options) -> DPOTrainer:
        references = {"ref_model": options.pop("ref_model", None)}
        settings = {"beta": 0.5, "report_to": "none", "disable_tqdm": True, "cpu_tuning": "off", "max_steps": 1}
        return trainer_class(
            make_model(),
            args=DPOConfig(output_dir=str(tmp_path), save_strategy="no", **{**settings, **options}),
            train_dataset=rows or make_rows(2),
            processing_class=make_tokenizer(),
            **references,
        )

    return make


def check(trainer: DPOTrainer) -> dict:
    return trainer.check_first_step(next(iter(trainer.get_train_dataloader())))


def test_a_sound_first_step(make_trainer):
    """The policy is its own reference: log 2, and the same log-probs by two ways."""
    event = check(make_trainer())
    assert event["ok"] is True
    assert event["loss"] == pytest.approx(LOG_2, abs=1e-9)
    assert event["expected"] == LOG_2
    assert event["max_difference"] < 1e-5
    assert event["message"] == "log-probs agree with a second computation, and the loss is as expected"


def test_a_shifted_forward_is_found(make_trainer):
    event = check(make_trainer(ShiftedTrainer))
    assert event["ok"] is False
    assert event["max_difference"] > 0.1
    assert "Training would be wrong" in event["message"]


def test_another_reference_is_said_and_not_called_a_fault(make_trainer):
    event = check(make_trainer(ref_model=make_model(seed=1)))
    assert event["ok"] is False
    assert event["max_difference"] < 1e-5
    assert ", not log 2 = 0.6931" in event["message"]
    assert "the given ref_model" in event["message"]
    assert "Training would be wrong" not in event["message"]


def test_the_loss_of_the_event_is_the_sigmoid_loss(make_trainer):
    """Under another loss too: at step 0 it is the identity that is checked, not what is minimised."""
    other = make_model(seed=1)
    losses = [check(make_trainer(loss_type=loss, ref_model=other))["loss"] for loss in ("sigmoid", "hinge")]
    trainer = make_trainer(ref_model=other)
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        pair = trainer.score_pairs(trainer.model, batch)
    expected = sum(math.log1p(math.exp(-0.5 * diff)) for diff in pair.logratio_diff.tolist()) / 2
    assert losses == pytest.approx([expected, expected], rel=1e-6)


@pytest.mark.parametrize("far", [-50_000.0, 50_000.0])
def test_a_reference_far_away_ends_in_a_message(make_trainer, far):
    """b D of ±25,000: exp of that is no float, but the check still has to say what is wrong."""
    rows = [{**row, "ref_chosen_logps": -10.0, "ref_rejected_logps": -10.0 + far} for row in make_rows(2)]
    event = check(make_trainer(rows=rows))
    assert event["ok"] is False
    assert math.isfinite(event["loss"])
    assert ", not log 2 = 0.6931" in event["message"]


def test_the_check_leaves_mode_and_gradients_alone(make_trainer):
    trainer = make_trainer()
    trainer.model.train()
    check(trainer)
    assert trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_plain_logps_is_the_models_own_arithmetic(make_trainer):
    """Row by row against cross-entropy, with one token of the answer left out of training."""
    trainer = make_trainer()
    batch = next(iter(trainer.get_train_dataloader()))
    loss_mask = batch.loss_mask.clone()
    loss_mask[:, 1] = False
    model, masked = make_model(), replace(batch, loss_mask=loss_mask)
    for row in range(len(batch)):
        prompt = batch.prompt_ids[batch.prompt_index[row]][batch.prompt_mask[batch.prompt_index[row]]]
        answer = batch.completion_ids[row][batch.completion_mask[row]]
        with torch.no_grad():
            logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        targets = answer.clone()
        targets[1] = -100
        expected = -torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        assert plain_logps(model, masked, row) == pytest.approx(float(expected), rel=1e-5)


def test_the_run_says_so(make_trainer):
    """The event is written at step 0 of a run, and only there."""
    trainer, told = make_trainer(max_steps=2), []
    own = trainer.tell
    trainer.tell = lambda kind, message, **fields: told.append((kind, fields)) or own(kind, message, **fields)
    trainer.train()
    first = [fields for kind, fields in told if kind == "first_step"]
    assert [(fields["step"], fields["ok"], fields["show"]) for fields in first] == [(0, True, False)]
