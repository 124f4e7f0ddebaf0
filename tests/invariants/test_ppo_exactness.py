"""Law 3 for PPO: however a round is cut into micro-batches, its answers, gradients and metrics are the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_training import step_lines
from ppo_training import make_ppo_trainer, repeatable
from training import relative_distance, step_gradients

from ranks import train_on


def run(directory: Path, rows: int, accumulation: int, **options) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """Rounds of two steps of 16 answers, twice over, in micro-batches of `rows`."""
    trainer = make_ppo_trainer(
        directory,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=2,
        max_steps=6,
        **options,
    )
    return step_gradients(trainer), [repeatable(line) for line in step_lines(trainer)]


CASES = {
    "own critic": {"mask_truncated_completions": True, "whiten_rewards": True},
    "head": {"critic": "head", "entropy_coef": 0.01, "missing_eos_penalty": 1.0, "critic_warmup_steps": 2},
    "kl in the loss": {"use_kl_in_reward": False, "kl_estimator": "k3", "kl_target": 1.0, "kl_horizon": 40.0},
    "groups": {"num_generations": 4, "loss_type": "gspo", "epsilon": 0.05, "bootstrap_truncated": True},
    "scaled": {"reward_scaling": "normalize", "reward_clip": 1.0, "lam_length_alpha": 0.5, "lam_critic": 1.0},
}


@pytest.mark.parametrize(
    "case", [name if name == "head" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_gradients_and_metrics_do_not_depend_on_micro_batches(tmp_path, case):
    """16 answers a step as 1 x 16, 4 x 4 and 8 x 2, while policy and critic learn, in float64.

    To 1e-5 over six steps: half a group may take another layout than a whole one, and the model's norms are computed in float32.
    """
    gradients, lines = run(tmp_path / "16", 16, 1, **CASES[case])
    assert len(gradients) == 6
    for rows, accumulation in [(4, 4), (2, 8)]:
        cut, cut_lines = run(tmp_path / str(rows), rows, accumulation, **CASES[case])
        for mine, reference in zip(cut, gradients, strict=True):
            assert relative_distance(mine, reference) < 1e-5
        for mine, reference in zip(cut_lines, lines, strict=True):
            assert mine == pytest.approx(reference, rel=1e-5, abs=1e-5)


HERE = Path(__file__).parent
SUPERVISED = [{"prompt": f"Say {i}: ", "completion": "x" * (i % 4 + 1)} for i in range(7)]


def two_ranks(output: Path, **options) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    gradients, log = train_on(2, output, "ppo_training:make_ppo_trainer", **options)
    return gradients, [repeatable(line) for line in log if "grad_norm" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "cut"), [("own critic", (8, 1)), ("head", (2, 4)), ("kl in the loss", (4, 2)), ("scaled", (8, 1))], ids=str
)
def test_two_processes_equal_one(tmp_path, case, cut):
    """The same prompts in every step; whitening, scaling and controllers over both ranks; supervised rows dealt."""
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in SUPERVISED))
    options = {
        **CASES[case], "num_mini_batches": 2, "max_steps": 6, "early_stop_kl": 0.05, "ptx_coef": 0.3,
        "ptx_path": str(tmp_path / "rows.jsonl"),
    }  # fmt: skip
    one = make_ppo_trainer(tmp_path / "one", ptx_batch_size=8, **options)
    gradients = step_gradients(one)
    rows, accumulation = cut
    two, log = two_ranks(
        tmp_path / "two",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        ptx_batch_size=4 // accumulation,
        **options,
    )
    assert len(gradients) == len(two) == 6
    for mine, reference in zip(two, gradients, strict=True):
        assert relative_distance(mine, reference) < 1e-6
    for mine, reference in zip(log, step_lines(one), strict=True):
        assert mine == pytest.approx(repeatable(reference), rel=1e-5, abs=1e-5)
