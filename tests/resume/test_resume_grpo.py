"""A GRPO run that is stopped after any optimizer step, in the middle of a round too, and resumed is bit for bit the
run that was never stopped: queue, prompt cursor, keyed randomness, controllers and references are in the checkpoint.
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
from online_training import make_online_trainer, make_prompts, near_wanted
from test_resume import weights_of

SOLVED = 0.8  # of near_wanted, so that solve rates differ
CONTROLLED = {
    "beta": 0.1,
    "use_adaptive_entropy": True,
    "entropy_target": 4.94,  # nats; the run's entropy goes from above to below, so that the coefficient moves
    "entropy_coef_delta": 0.02,
    "curriculum_window": [0.2, 0.9],
    "solved_reward": SOLVED,
}
CASES = list(product((1, 3), (1, 4), (1, 2)))  # accumulation, optimizer steps a round, passes over it
FAST = (3, 4, 2)


def trainer_at(directory: Path, case: tuple[int, int, int] = FAST, **options):
    """Ten steps of 12 answers in rounds of 1, 2, 4 or 8; log lines span two steps, saves do not match them."""
    accumulation, steps, iterations = case
    settings = {
        "rows": make_prompts(7),
        "dtype": torch.float32,
        "per_device_train_batch_size": 12 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * steps,
        "num_iterations": iterations,
        "num_generations": 4,
        "max_steps": 10,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        **CONTROLLED,
    }
    return make_online_trainer(directory, **{**settings, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped, by case."""
    return WholeRuns(trainer_at, tmp_path_factory.mktemp)


def test_the_run_has_what_is_tested(whole):
    """Rounds begin in the middle of the run, the coefficient of the entropy moves, and prompts are left out."""
    trainer, directory = whole(FAST)
    assert trainer.queue.round_index == 2
    assert trainer.prompt_stream.num_left_out > 0
    assert 0 < trainer.entropy_control.value < 0.2
    lines = metrics_in(directory)
    assert any(line.get("kl", 0) > 0 for line in lines)
    assert sum("reward" in line for line in lines) == 2


MID_ROUND, ROUND_END = 3, 8


@pytest.mark.parametrize("step", [MID_ROUND, pytest.param(ROUND_END, marks=pytest.mark.slow)])
def test_resumed_run_is_bit_identical(tmp_path, whole, step):
    """Step 3 is in the first pass over a round of four steps, step 8 ends its second pass."""
    resumed = stop_and_resume(lambda: trainer_at(tmp_path / "run"), step)
    assert_the_same(resumed, tmp_path / "run", *whole(FAST))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_step_of_every_case(tmp_path, whole, case):
    trainer, directory = whole(case)

    def check(resumed, copied):
        assert_the_same(resumed, copied, trainer, directory)

    resume_at_every_step(directory, 10, tmp_path, lambda copied: trainer_at(copied, case), check)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5},
        {"dynamic_sampling": True, "mask_truncated_completions": True},
        {"top_entropy_quantile": 0.5, "importance_sampling_correction": True, "top_p": 0.9},
    ],
    ids=["moving reference", "dynamic sampling", "parts of the queue"],
)
def test_with_other_state(tmp_path, options):
    case = (1, 4, 1)
    trainer = trainer_at(tmp_path / "whole", case, **options)
    trainer.train()
    resumed = stop_and_resume(lambda: trainer_at(tmp_path / "run", case, **options), 6)
    assert_the_same(resumed, tmp_path / "run", trainer, tmp_path / "whole")


def test_evaluation_in_the_middle_of_a_round_changes_nothing(tmp_path, whole):
    """Its answers have random numbers of their own, and no round is lost to it."""
    trainer = trainer_at(
        tmp_path / "run",
        eval_dataset=make_prompts(3),
        eval_strategy="steps",
        eval_steps=3,
        per_device_eval_batch_size=2,
    )
    trainer.train()
    reference, _ = whole(FAST)
    assert any("eval_accuracy" in line for line in trainer.state.log_history)
    assert all(torch.equal(tensor, weights_of(reference)[name]) for name, tensor in weights_of(trainer).items())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_generations": 2}, "num_generations"),
        ({"temperature": 0.9}, "temperature"),
        ({"beta": 0.2}, "beta"),
        ({"rows": make_prompts(8)}, "train_data"),
        ({"reward_funcs": lambda completion_ids, **_: [0.0] * len(completion_ids)}, "reward_funcs"),
        ({"ref_seed": 2}, "reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_refused_by_name(whole, changed, named):
    _, directory = whole(FAST)
    trainer = trainer_at(directory, **{"reward_funcs": near_wanted, **changed})
    with pytest.raises(ValueError, match=rf"{named}: was .* is "):
        trainer.train(resume_from_checkpoint=True)


def test_no_file_of_a_run_is_a_pickle(whole):
    assert_no_pickle(whole(FAST)[1])
