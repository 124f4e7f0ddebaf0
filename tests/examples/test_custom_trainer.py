"""A trainer written by a user gets the same guarantees as the library's own."""

from __future__ import annotations

import ast
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import custom_trainer

EXAMPLES = Path(__file__).parents[2] / "examples"

QUIET = {"save_strategy": "no", "disable_tqdm": True, "cpu_tuning": "off"}


def run(output_dir: Path, **options) -> custom_trainer.SimPOTrainer:
    torch.manual_seed(0)
    return custom_trainer.main(output_dir=str(output_dir), **QUIET, **options)


def log_lines(trainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "grad_norm" in line]


def mean_log_prob(model, row: dict, answer: str) -> float:
    """Log-prob per token of one answer, from the model's own logits, one row at a time."""
    prompt, completion = row["prompt_input_ids"], row[f"{answer}_input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    scores = logits[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
    return float(scores.mean())


def test_loss_is_the_papers(tmp_path):
    """Mean over the rows of log(1 + exp(-(2 (mean chosen - mean rejected) - 1))), at beta 2 and gamma 1."""
    trainer = run(tmp_path, max_steps=1, learning_rate=0.0)
    losses = []
    for row in trainer.train_dataset:
        gap = mean_log_prob(trainer.model, row, "chosen") - mean_log_prob(trainer.model, row, "rejected")
        losses.append(math.log1p(math.exp(-(2.0 * gap - 1.0))))
    assert len(losses) == 8
    assert log_lines(trainer)[0]["loss"] == pytest.approx(sum(losses) / 8, rel=1e-6)


def test_micro_batches_do_not_change_the_weights(tmp_path):
    """Four steps of all eight rows: 8 x 1, 3 x 3 (3, 3 and 2 rows) and 1 x 8."""
    whole = run(tmp_path / "8").model.state_dict()
    for size, accumulation in [(3, 3), (1, 8)]:
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        cut = run(tmp_path / str(size), **options).model.state_dict()
        for name, weight in whole.items():
            torch.testing.assert_close(cut[name], weight, rtol=1e-5, atol=1e-6)


def test_it_learns_and_logs_its_metric(tmp_path):
    lines = log_lines(run(tmp_path))
    assert len(lines) == 4
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[-1]["rewards/accuracies"] <= 1


def test_sizes():
    """The whole example has at most 60 lines, and a trainer with its configuration at most 40."""
    source = (EXAMPLES / "custom_trainer.py").read_text()
    assert len(source.splitlines()) <= 60
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["SimPOConfig", "SimPOTrainer"]
    assert sum(node.end_lineno - node.lineno + 1 for node in classes) <= 40
