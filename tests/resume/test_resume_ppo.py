"""A PPO run that is stopped after any optimizer step, in the middle of a PPO epoch too, and resumed is bit for bit the
run that was never stopped: the critic, its optimizer and schedule, the controllers and the queue are in the checkpoint.
"""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_training import make_prompts
from ppo_training import make_ppo_trainer, repeatable
from test_resume import StopAfter, weights_of

from burnish.runtime.rundir import read_events, read_metrics

CONTROLLED = {
    "kl_target": 2.0,
    "kl_horizon": 50.0,
    "reward_scaling": "normalize",
    "early_stop_kl": 0.02,
    "critic_warmup_steps": 3,
    "critic_warmup_lam": 1.0,
    "critic_learning_rate": 1e-3,
    "critic_lr_scheduler_type": "constant",
    "use_adaptive_entropy": True,
    "entropy_target": 4.94,  # nats; the run's entropy goes from above to below, so that the coefficient moves
    "entropy_coef_delta": 0.02,
    "gamma": 0.99,
    "lam_length_alpha": 0.5,
}
CASES = list(product((1, 3), (1, 2), (1, 4), ("policy", "head")))  # accumulation, mini-batches, epochs, critic
FAST = (3, 2, 2, "policy")
NUM_STEPS = 12


def trainer_at(directory: Path, case: tuple[int, int, int, str] = FAST, **options):
    """Twelve steps of 12 answers; log lines span two steps, rounds have 1, 2, 4 or 8."""
    accumulation, mini_batches, epochs, critic = case
    settings = {
        "rows": make_prompts(7),
        "dtype": torch.float32,
        "per_device_train_batch_size": 12 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "num_mini_batches": mini_batches,
        "num_iterations": epochs,
        "critic": critic,
        "max_steps": NUM_STEPS,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        **CONTROLLED,
    }
    return make_ppo_trainer(directory, **{**settings, **options})


def metrics_in(directory: Path) -> list[dict]:
    """What is the same in every run; `epoch` counts micro-batches, and `train_loss` the steps since the resume."""
    lines = [repeatable(line) for line in read_metrics(directory / "metrics.jsonl")]
    return [{k: v for k, v in line.items() if k != "train_loss"} for line in lines if len(line) > 2]


def stop_and_resume(directory: Path, step: int, case: tuple[int, int, int, str] = FAST, **options):
    first = trainer_at(directory, case, **options)
    first.add_callback(StopAfter(step + 1))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer_at(directory, case, **options)
    second.train(resume_from_checkpoint=True)
    return second


def assert_the_same(resumed, directory: Path, whole, whole_directory: Path) -> None:
    """Weights of policy and critic, metrics, and whatever is moved from round to round."""
    for name, tensor in weights_of(resumed).items():
        assert torch.equal(tensor, weights_of(whole)[name]), name
    assert metrics_in(directory) == metrics_in(whole_directory)
    assert resumed.queue.round_index == whole.queue.round_index
    for name in ("prompt_stream", "kl_control", "reward_scale", "num_early_stops", "num_answers"):
        mine, theirs = (trainer.stateful()[name].state_dict() for trainer in (resumed, whole))
        assert {k: str(v) for k, v in mine.items()} == {k: str(v) for k, v in theirs.items()}, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped, by case."""
    runs = {}

    def run(case):
        if case not in runs:
            directory = tmp_path_factory.mktemp("whole") / "run"
            trainer = trainer_at(directory, case)
            trainer.train()
            assert trainer.state.global_step == NUM_STEPS
            runs[case] = trainer, directory
        return runs[case]

    return run


def test_the_run_has_what_is_tested(whole):
    """Controllers move, a round is given up in its middle, and the critic is trained before the policy is."""
    trainer, directory = whole(FAST)
    assert trainer.credit.kl_coef != trainer.args.kl_coef
    assert trainer.credit.scale.count > 36
    assert 0 < trainer.entropy_control.value < 0.4
    stops = [e for e in read_events(directory / "events.jsonl") if e["kind"] == "early_stop"]
    assert stops
    assert any(e["left_out"] > 1 for e in stops)
    assert trainer.num_early_stops.value == len(stops)
    lines = metrics_in(directory)
    assert "loss/policy_avg" not in lines[0]
    assert "loss/policy_avg" in lines[1]
    assert lines[0]["val/lr"] == lines[-1]["val/lr"] == 1e-3


IN_THE_WARMUP, IN_AN_EPOCH = 1, 5


@pytest.mark.parametrize("step", [pytest.param(IN_THE_WARMUP, marks=pytest.mark.slow), IN_AN_EPOCH])
def test_resumed_run_is_bit_identical(tmp_path, whole, step):
    resumed = stop_and_resume(tmp_path / "run", step)
    assert_the_same(resumed, tmp_path / "run", *whole(FAST))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_step_of_every_case(tmp_path, whole, case):
    """From each checkpoint of a whole run: copied, what came after it cut off, and continued."""
    trainer, directory = whole(case)
    for step in range(1, NUM_STEPS):
        copied = tmp_path / f"from_{step}"
        later = [f"checkpoint-{other}" for other in range(step + 1, NUM_STEPS + 1)]
        shutil.copytree(directory, copied, ignore=shutil.ignore_patterns(*later, "run.lock*"))
        resumed = trainer_at(copied, case)
        resumed.train(resume_from_checkpoint=True)
        assert_the_same(resumed, copied, trainer, directory)
        shutil.rmtree(copied)


def test_a_checkpoint_of_another_critic_is_refused(tmp_path, whole):
    """By the option's name, as every option that binds."""
    _, directory = whole(FAST)
    with pytest.raises(ValueError, match=r"critic: was 'policy', is 'head'"):
        trainer_at(directory, (3, 2, 2, "head")).train(resume_from_checkpoint=True)


def test_no_file_of_a_run_is_a_pickle(whole):
    _, directory = whole(FAST)
    suffixes = {path.suffix for path in directory.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".yaml", ".jinja", ".lock", ".parquet"}
