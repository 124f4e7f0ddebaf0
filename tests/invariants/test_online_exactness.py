"""Law 3 for rollouts: however a round is cut into micro-batches, its answers, gradients and metrics are the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_training import make_online_trainer, make_prompts, repeatable, step_lines
from training import relative_distance, step_gradients

from ranks import train_on

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def run(directory: Path, rows: int, accumulation: int, **options) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """Rounds of 8 prompts in two steps of 16 answers, in micro-batches of `rows`."""
    trainer = make_online_trainer(
        directory,
        rows=make_prompts(16),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=2 * accumulation,
        max_steps=4,
        **options,
    )
    return step_gradients(trainer), [repeatable(line) for line in step_lines(trainer)]


CASES = {
    "dapo": {},
    "kl, masked": {"beta": 0.1, "ref_seed": 1, "mask_truncated_completions": True},
    "grpo": {"loss_type": "grpo", "entropy_coef": 0.01},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "batch"},
    "gspo": {"loss_type": "gspo", "epsilon": 0.05, "advantage": "rloo"},
    "cispo": {"loss_type": "cispo", "top_entropy_quantile": 0.5},
    "kl in reward": {"beta": 0.1, "ref_seed": 1, "use_kl_in_reward": True},
    "correction": {"importance_sampling_correction": True, "top_p": 0.9},
}


@pytest.mark.parametrize(
    "case", [name if name == "kl, masked" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_gradients_and_metrics_do_not_depend_on_micro_batches(tmp_path, case):
    """16 answers a step as 1 x 16, 2 x 8, 4 x 4 and 8 x 2 (half a group), while the policy learns, in float64.

    In one layout: between two the model's norms, computed in float32, round differently; see the test below.
    """
    options = {"prefix_sharing": "off", **CASES[case]}
    gradients, lines = run(tmp_path / "16", 16, 1, **options)
    assert len(gradients) == 4
    for rows, accumulation in [(8, 2), (4, 4), (2, 8)]:
        cut, cut_lines = run(tmp_path / str(rows), rows, accumulation, **options)
        for mine, reference in zip(cut, gradients, strict=True):
            assert relative_distance(mine, reference) < TOLERANCE[torch.float64]
        for mine, reference in zip(cut_lines, lines, strict=True):
            assert mine == pytest.approx(reference, rel=1e-9, abs=1e-9)


@pytest.mark.gallery
def test_layouts_and_token_budgets_change_nothing(tmp_path):
    """Prompts once or for each answer, micro-batches whole or in parts of one group: the same steps to 1e-6."""
    gradients, lines = run(tmp_path / "off", 16, 1, prefix_sharing="off", token_budget=0)
    for number, options in enumerate([{}, {"token_budget": 1}, {"prefix_sharing": "off", "token_budget": 1}]):
        cut, cut_lines = run(tmp_path / str(number), 16, 1, **options)
        for mine, reference in zip(cut, gradients, strict=True):
            assert relative_distance(mine, reference) < 1e-6
        for mine, reference in zip(cut_lines, lines, strict=True):
            assert mine == pytest.approx(reference, rel=1e-6, abs=1e-6)


@pytest.mark.gallery
def test_the_same_in_float32(tmp_path):
    """The policy stays as it is, so that the answers of the second round are the same too."""
    options = {"dtype": torch.float32, "learning_rate": 0.0, **CASES["kl, masked"]}
    gradients, _ = run(tmp_path / "16", 16, 1, **options)
    for rows, accumulation in [(8, 2), (4, 4)]:
        cut, _ = run(tmp_path / str(rows), rows, accumulation, **options)
        for mine, reference in zip(cut, gradients, strict=True):
            assert relative_distance(mine, reference) < TOLERANCE[torch.float32]


def two_ranks(
    output: Path, *, maker: str = "make_online_trainer", **options
) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    options |= {"rows": make_prompts(16), "eval_dataset": make_prompts(5)}
    gradients, log = train_on(2, output, f"online_training:{maker}", **options)
    return gradients, [repeatable(line) for line in log]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "cut"), [("kl, masked", (8, 1)), ("dr_grpo", (2, 4)), ("kl in reward", (4, 2))], ids=str
)
def test_two_processes_equal_one(tmp_path, case, cut):
    """The same prompts in every step, baselines over both ranks, and the same evaluation.

    Advantages are float32, and those of the whole round are summed in another order.
    """
    rows, accumulation = cut
    one = make_online_trainer(
        tmp_path / "one",
        rows=make_prompts(16),
        eval_dataset=make_prompts(5),
        steps_per_generation=2,
        max_steps=4,
        **CASES[case],
    )
    gradients = step_gradients(one)
    one.evaluate()
    two, log = two_ranks(
        tmp_path / "two",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=2 * accumulation,
        max_steps=4,
        **CASES[case],
    )
    assert len(gradients) == len(two) == 4
    for mine, reference in zip(two, gradients, strict=True):
        assert relative_distance(mine, reference) < 1e-6
    for mine, reference in zip(log, one.state.log_history, strict=True):
        assert mine == pytest.approx(repeatable(reference), rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_ranks_stay_in_step_under_dynamic_sampling(tmp_path):
    """One rank may miss more groups than the other; both draw as often, and every group has signal in the end."""
    gradients, log = two_ranks(
        tmp_path / "two",
        per_device_train_batch_size=8,
        dynamic_sampling=True,
        dynamic_sampling_attempts=12,
        maker="make_flat_trainer",
        max_steps=4,
    )
    lines = [line for line in log if "grad_norm" in line]
    assert len(gradients) == len(lines) == 4
    assert all(line["frac_reward_zero_std"] == 0 for line in lines)
    assert sum(line["dynamic_sampling/replaced_groups"] for line in lines) > 2
