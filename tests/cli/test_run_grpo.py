"""GRPO from a run file: rewards of every kind, what is shown, and what is left in the run directory."""

from __future__ import annotations

import pyarrow.parquet as parquet
import pytest
import yaml
from run_place import SUMS, save_classifier, save_model, start, write_rows

from burnish.cli.runfile import load_runfile
from burnish.runtime.rundir import read_metrics

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
    save_model("model")
    save_classifier("judge")
    write_rows("sums.jsonl", SUMS)
    (tmp_path / "rewards_of_this_test.py").write_text(
        "def brief(completion_ids, **kwargs):\n    return [-float(len(ids)) for ids in completion_ids]\n"
    )
    (tmp_path / "grpo.yaml").write_text(RUN_FILE)
    return tmp_path


def test_rewards_by_name_by_path_and_from_a_module(workplace, monkeypatch):
    outcome, screen = start("grpo.yaml")
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
