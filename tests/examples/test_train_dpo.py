"""The first script of the README, on a tiny model that lies in a directory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from conftest import make_model, make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import train_dpo

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def model_directory(tmp_path) -> Path:
    directory = tmp_path / "tiny"
    make_model(max_position_embeddings=1024).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def test_it_trains_and_saves_a_model(tmp_path, model_directory):
    trainer = train_dpo.main(
        str(model_directory),
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=40,
        max_length=128,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        cpu_tuning="off",
    )
    last = trainer.state.log_history[-1]
    assert 0 < last["eval_loss"] < 1
    assert trainer.data_reports["train"].num_rows == 330
    assert trainer.data_reports["eval"].num_rows == 80
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics][:2] == [1, 2]


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
