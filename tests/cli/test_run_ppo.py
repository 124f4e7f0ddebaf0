"""PPO from a run file: what is shown before, during and after, and what is left in the run directory."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from run_place import SUMS, save_classifier, save_model, start, write_rows
from transformers import AutoModelForSequenceClassification

from burnish.cli.checkup import check_up
from burnish.cli.resume import load_run_directory
from burnish.cli.run import run
from burnish.cli.runfile import RunFileError, load_runfile
from conftest import make_model, make_tokenizer

RUN_FILE = """
method: ppo
model: model
rewards: number
data: {train: sums.jsonl, eval_rows: 2}
samples: 1
max_new_tokens: 4
training:
  max_steps: 2
  num_iterations: 2
  per_device_train_batch_size: 4
  max_completion_length: 6
  num_generations_eval: 2
  learning_rate: 1e-3
  logging_steps: 1
  cpu_tuning: "off"
  reward_isolation: none
  output_dir: run
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with a model, prompts and a run file; the current one."""
    monkeypatch.chdir(tmp_path)
    save_model("model")
    write_rows("sums.jsonl", SUMS)
    (tmp_path / "ppo.yaml").write_text(RUN_FILE)
    return tmp_path


def test_a_run(workplace):
    """The plan names credit, KL and critic; the table has KL and explained variance; both models are saved."""
    outcome, shown = start("ppo.yaml", width=140)
    assert "advantages: GAE, gamma 1, lambda 0.95; KL in the reward, 0.05 a nat" in shown
    assert "critic: LlamaForSequenceClassification of its own, learning rate 0.001" in shown
    assert "4 prompts × 1 = 4 answers a round, 2 optimizer steps a round (1 × 2 passes), 2 steps" in shown
    assert set(outcome.before) == set(outcome.after) >= {"eval_reward", "eval_objective/kl"}
    assert outcome.before["eval_objective/kl"].mean == 0
    assert AutoModelForSequenceClassification.from_pretrained("run/critic").config.num_labels == 1


def test_a_reward_model(workplace):
    """It scores the answers, and its copy is the critic, which `resume` goes on with."""
    save_classifier("reward")
    changes = ["rewards=./reward", "critic=reward", "save_strategy=steps", "save_steps=1", "reward_scaling=scale"]
    first, _ = start("ppo.yaml", changes)
    assert first.before["eval_objective/kl"].mean == 0
    critic = AutoModelForSequenceClassification.from_pretrained("run/critic")
    assert critic.config.hidden_size == 16
    shutil.rmtree("run/checkpoint-2")
    again = run(load_run_directory(Path("run")), resume=True, console=Console(file=io.StringIO()))
    for name, tensor in AutoModelForSequenceClassification.from_pretrained("run/critic").state_dict().items():
        assert torch.equal(tensor, critic.state_dict()[name])
    assert again.after["eval_reward"].mean == first.after["eval_reward"].mean


def test_recipes(workplace):
    """That of the demo asks for its reward model."""
    with pytest.raises(RunFileError, match=r"burnish train recipe:reward --set output_dir=\./runs/demo-reward"):
        load_runfile("recipe:ppo")
    Path("runs/demo-reward").mkdir(parents=True)
    assert load_runfile("recipe:ppo").rewards == ("./runs/demo-reward",)
    assert load_runfile("recipe:ppo-sums").rewards == ("number",)


def test_a_check(workplace):
    """Rounds of mini-batches and episodes, groups of one, and the critic's memory."""
    found = check_up("ppo.yaml", ["max_steps=-1", "num_mini_batches=2", "total_episodes=20"])
    assert not found.problems
    assert any("8 answers a round, 4 optimizer steps a round" in line and "12 steps" in line for line in found.lines)
    with_critic = found.memory.parts
    assert with_critic["critic"] > with_critic["weights"] + with_critic["optimizer"]
    head = check_up("ppo.yaml", ["critic=head"])
    assert "critic" not in head.memory.parts
    assert head.disk.model < found.disk.model


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("num_generations=0", "num_generations"),
        ("critic=other", "critic"),
        ("gamma=2", "gamma"),
        ("kl_horizon=5", "kl_horizon"),
        ("num_iterations=0", "num_iterations"),
        ("loss_type=sigmoid", "loss_type"),
        ("num_mini_batches=3 steps_per_generation=4", "num_mini_batches: makes a round of 3 micro-batches"),
        ("num_mini_batches=3 generation_batch_size=16", "num_mini_batches: makes a round of 3 micro-batches"),
        ("total_episodes=20", "total_episodes: makes 10 steps, and max_steps is 2"),
        ("rewards=./reward", "burnish train recipe:reward --set output_dir=./reward"),
        ("critic=reward", "rewards has 0 of them"),
        ("critic=head value_model_path=model", "value_model_path names another critic"),
        ("value_model_path=./critic", "value_model_path: there is no directory './critic'"),
        ("dynamic_sampling=true", "dynamic_sampling: compares answers to a prompt, and num_generations is 1"),
        ("min_new_tokens=99", "min_new_tokens: is 99, and max_completion_length is"),
        ("eval_greedy=false num_generations_eval=0", "nothing is left to evaluate"),
        ("use_adaptive_entropy=true entropy_coef=2", "entropy_coef: is 2, and is moved between"),
        ("lam=0.9 lam_length_alpha=0.05", "lam: has no effect while lam_length_alpha is 0.05"),
        ("delta=1.1", "delta: is 1.1, inside of the clip, which ends at 1.2"),
        ("ptx_coef=0.5", "ptx_coef: is 0.5, and ptx_path is null"),
        ("stop_token=end", "stop_token: is 'end'; allowed: eos"),
        ("repetition_penalty=0", "repetition_penalty: is 0; allowed: a number, above 0"),
        ("bootstrap_truncated=true missing_eos_penalty=1", "missing_eos_penalty: takes a cut answer"),
        ("bootstrap_truncated=true mask_truncated_completions=true", "bootstrap_truncated: is about answers that are"),
    ],
)
def test_what_is_wrong_is_named(workplace, override, problem):
    (found,) = check_up("ppo.yaml", override.split()).file_problems
    assert problem in found


def test_a_critic_that_was_loaded_from_elsewhere(workplace):
    """Its vocabulary has to be the policy's: another tokenizer is an error that says why."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["another"])
    save_model("critic", make_model(vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(ValueError, match="token ids"):
        start("ppo.yaml", ["value_model_path=critic"])
