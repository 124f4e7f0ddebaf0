"""PPO-ptx: supervised rows beside the sampled ones, a term and a unit of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parents[1] / "resume"))
sys.path.insert(0, str(Path(__file__).parent))
from online_training import ending_model, make_prompts, near_wanted, step_lines
from ppo_training import make_ppo_trainer, repeatable
from test_grpo import Recorder, token_logps
from test_ppo import parts
from test_resume import StopAfter, weights_of
from training import relative_distance, step_gradients

from burnish.trainers.ppo import PPOTrainer
from burnish.trainers.ppo_options import PPOConfig
from conftest import make_tokenizer

ROWS = [{"prompt": f"Say {i}: ", "completion": "x" * (i % 4 + 1)} for i in range(7)]


class WithRows(PPOTrainer):
    """The helper's trainer, with supervised rows."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, ptx_dataset=ROWS, **kwargs)


def make(directory, **options) -> PPOTrainer:
    return make_ppo_trainer(directory, trainer_class=WithRows, **{"ptx_coef": 0.5, "ptx_batch_size": 4, **options})


def test_the_term_by_hand(tmp_path):
    """The mean of -logp over the supervised tokens of the step; without it the loss is that of a run without rows."""
    trainer = make(tmp_path / "ptx", max_steps=1)
    recorder = Recorder(trainer)
    trainer.train()
    (batch,), line = recorder.steps[0], step_lines(trainer)[0]
    policy, _ = parts(recorder.weights[0])
    with torch.no_grad():
        logps = torch.cat([token_logps(policy, batch.supervised, row) for row in range(4)])
    assert len(logps) == int(batch.supervised.loss_mask.sum())
    assert line["loss/ptx"] == pytest.approx(-float(logps.mean()), rel=1e-6)
    plain = make_ppo_trainer(tmp_path / "plain", max_steps=1)
    plain.train()
    assert line["loss"] == pytest.approx(step_lines(plain)[0]["loss"] + 0.5 * line["loss/ptx"], rel=1e-6)
    assert line["num_tokens"] > step_lines(plain)[0]["num_tokens"]


def test_every_step_has_other_rows(tmp_path):
    """In each pass over a round, in another order in each epoch of theirs."""
    trainer = make(tmp_path, max_steps=4)
    recorder = Recorder(trainer)
    trainer.train()
    drawn = [row for (batch,) in recorder.steps for row in batch.supervised.row_id.tolist()]
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == list(range(7))
    assert drawn[:7] != drawn[7:14]


def test_gradients_do_not_depend_on_micro_batches(tmp_path):
    """4 supervised rows a step, however it is split: 1 beside each of 4 micro-batches, or with the first part."""
    whole = make(tmp_path / "whole", max_steps=3)
    gradients, lines = step_gradients(whole), step_lines(whole)
    for rows, accumulation, beside, budget in ((4, 4, 1, None), (16, 1, 4, 60)):
        trainer = make(
            tmp_path / f"cut_{rows}", max_steps=3, per_device_train_batch_size=rows, ptx_batch_size=beside,
            gradient_accumulation_steps=accumulation, token_budget=budget,
        )  # fmt: skip
        for mine, reference in zip(step_gradients(trainer), gradients, strict=True):
            assert relative_distance(mine, reference) < 1e-12, f"{rows} rows"
        for mine, reference in zip(step_lines(trainer), lines, strict=True):
            assert repeatable(mine) == pytest.approx(repeatable(reference), rel=1e-9, abs=1e-9), f"{rows} rows"


@pytest.mark.gallery
def test_resumed_run_is_bit_identical(tmp_path):
    """The cursor over the supervised rows goes on; other rows are refused."""
    options = {"dtype": torch.float32, "save_strategy": "steps", "save_steps": 1, "max_steps": 5}
    whole = make(tmp_path / "whole", **options)
    whole.train()
    first = make(tmp_path / "run", **options)
    first.add_callback(StopAfter(4))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = make(tmp_path / "run", **options)
    second.train(resume_from_checkpoint=True)
    assert all(torch.equal(tensor, weights_of(whole)[name]) for name, tensor in weights_of(second).items())
    ROWS.append({"prompt": "another", "completion": "row"})
    try:
        with pytest.raises(ValueError, match=r"ptx_data: was .* is "):
            make(tmp_path / "run", **options).train(resume_from_checkpoint=True)
    finally:
        ROWS.pop()


def test_rows_and_factor_go_together(tmp_path):
    options = {"train_dataset": make_prompts(), "processing_class": make_tokenizer()}
    with pytest.raises(ValueError, match=r"ptx_coef=0\.5, and supervised rows are not given"):
        PPOTrainer(ending_model(), near_wanted, PPOConfig(output_dir=str(tmp_path), ptx_coef=0.5), **options)
    with pytest.raises(ValueError, match=r"ptx_coef=0, and supervised rows are given"):
        PPOTrainer(ending_model(), near_wanted, PPOConfig(output_dir=str(tmp_path)), ptx_dataset=ROWS, **options)
