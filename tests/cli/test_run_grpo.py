"""GRPO from a run file: rewards of every kind, what is shown, and what is left in the run directory."""

from __future__ import annotations

import io
import json

import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from rich.console import Console
from transformers import LlamaConfig, LlamaForSequenceClassification

from burnish.cli.run import run
from burnish.cli.runfile import load_runfile
from burnish.runtime.rundir import read_metrics
from conftest import make_model, make_tokenizer

RUN_FILE = """
method: grpo
model: model
rewards: [number, ./judge, rewards_of_this_test:brief]
data: {train: sums.jsonl, eval_rows: 2}
samples: 1
max_new_tokens: 4
training:
  max_steps: 2
  num_generations: 2
  per_device_train_batch_size: 4
  max_completion_length: 6
  num_generations_eval: 2
  learning_rate: 1e-3
  logging_steps: 1
  log_completions: true
  cpu_tuning: "off"
  reward_isolation: none
  output_dir: run
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with a model, a classifier, prompts and a module of rewards; the current one."""
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    LlamaForSequenceClassification(config).save_pretrained("judge")
    for folder in ("model", "judge"):
        make_tokenizer().save_pretrained(folder)
    rows = [{"prompt": [{"role": "user", "content": f"{n} + 1 ="}], "answer": str(n + 1)} for n in range(8)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rewards_of_this_test.py").write_text(
        "def brief(completion_ids, **kwargs):\n    return [-float(len(ids)) for ids in completion_ids]\n"
    )
    (tmp_path / "grpo.yaml").write_text(RUN_FILE)
    return tmp_path


def start(overrides=()):
    screen = io.StringIO()
    outcome = run(load_runfile("grpo.yaml", overrides), console=Console(file=screen, width=120))
    return outcome, screen.getvalue()


def test_rewards_by_name_by_path_and_from_a_module(workplace, monkeypatch):
    outcome, screen = start()
    lines = [line for line in read_metrics(workplace / "run" / "metrics.jsonl") if "grad_norm" in line]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        parts = [line[f"rewards/{name}/mean"] for name in ("number", "judge", "brief")]
        assert line["reward"] == pytest.approx(sum(parts), abs=1e-5)
        assert line["rewards/brief/mean"] == -line["completions/mean_length"]
        assert line["rewards/judge/mean"] != 0
    rows = parquet.read_table(workplace / "run" / "completions" / "step-000002.parquet").to_pylist()
    assert len(rows) == 4
    assert len({row["rewards/judge"] for row in rows}) > 1
    assert "4 of 4 answers of the round of step 2" in screen
    assert set(outcome.before) == set(outcome.after) >= {"eval_accuracy", "eval_reward", "eval_pass@2"}

    stored = yaml.safe_load((workplace / "run" / "run.yaml").read_text())
    assert stored["rewards"] == ["number", str(workplace / "judge"), "rewards_of_this_test:brief"]
    monkeypatch.chdir(workplace / "run")
    assert load_runfile("run.yaml").rewards[1] == str(workplace / "judge")
