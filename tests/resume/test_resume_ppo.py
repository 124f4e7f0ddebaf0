"""A PPO run that is stopped after any optimizer step, in the middle of a PPO epoch too, and resumed is bit for bit the
run that was never stopped: the critic, its optimizer and schedule, the controllers and the queue are in the checkpoint.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from online_resume import (
    WholeRuns,
    assert_no_pickle,
    assert_the_same,
    metrics_in,
    resume_at_every_step,
    stop_and_resume,
)
from online_training import make_prompts
from ppo_training import make_ppo_trainer

from burnish.runtime.rundir import read_events

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
STATEFUL = ("kl_control", "reward_scale", "num_early_stops", "num_answers")  # beside what every online trainer moves


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped, by case."""
    return WholeRuns(trainer_at, tmp_path_factory.mktemp)


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
    resumed = stop_and_resume(lambda: trainer_at(tmp_path / "run"), step)
    assert_the_same(resumed, tmp_path / "run", *whole(FAST), *STATEFUL)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_step_of_every_case(tmp_path, whole, case):
    trainer, directory = whole(case)

    def check(resumed, copied):
        assert_the_same(resumed, copied, trainer, directory, *STATEFUL)

    resume_at_every_step(directory, NUM_STEPS, tmp_path, lambda copied: trainer_at(copied, case), check)


def test_a_checkpoint_of_another_critic_is_refused(tmp_path, whole):
    """By the option's name, as every option that binds."""
    _, directory = whole(FAST)
    with pytest.raises(ValueError, match=r"critic: was 'policy', is 'head'"):
        trainer_at(directory, (3, 2, 2, "head")).train(resume_from_checkpoint=True)


def test_no_file_of_a_run_is_a_pickle(whole):
    assert_no_pickle(whole(FAST)[1])
