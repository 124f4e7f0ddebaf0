"""The loop without a library and `PPOTrainer` are the same training, step by step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "from_scratch"))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
sys.path.insert(0, str(Path(__file__).parent))
import ppo_loop
from online_training import ending_model, step_lines
from ppo_training import make_ppo_trainer, value_model
from test_from_scratch_grpo import Draw, even_eighths, flat, taken_answers
from training import relative_distance

LOOP = Path(__file__).parents[2] / "examples" / "from_scratch" / "ppo_loop.py"
SETTINGS = {"learning_rate": 3e-3, "weight_decay": 0.01, "max_grad_norm": 0.5, "kl_coef": 0.2, "lam": 0.9}


class DrawAnswers(Draw):
    """The answers of the loop's own policy, with the trainer's prompts and random numbers, one to each prompt."""

    def __call__(self, model, number: int) -> list[ppo_loop.Answer]:
        groups = super().__call__(model, number)
        return [ppo_loop.Answer(group.prompt, group.answers[0], group.rewards[0]) for group in groups]


@pytest.mark.parametrize("steps", [pytest.param(1, marks=pytest.mark.gallery), 2], ids=["rounds", "mini-batches"])
def test_every_step_equals_the_trainers(tmp_path, steps):
    """The same answers, loss, gradient norms and weights to 1e-6 over two rounds of two passes, in micro-batches."""
    trainer = make_ppo_trainer(
        tmp_path,
        reward_funcs=even_eighths,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_mini_batches=steps,
        num_iterations=2,
        max_steps=4 * steps,
        **SETTINGS,
    )
    draw, policy, critic = DrawAnswers(trainer), ending_model(), value_model()
    history = ppo_loop.train(
        policy, critic, draw, num_rounds=2, epochs=2, steps_per_epoch=steps, reference=ending_model(1), **SETTINGS
    )

    answers = taken_answers(trainer, lambda: trainer.queue.is_empty or trainer.queue.is_first_pass)
    trainer.train()
    lines = step_lines(trainer)

    assert answers == draw.answers
    assert len(history) == len(lines) == 4 * steps
    for step, line in zip(history, lines, strict=True):
        assert step.loss == pytest.approx(line["loss"], rel=1e-6, abs=1e-6)
        assert step.policy_norm == pytest.approx(line["policy/grad_norm"], rel=1e-6)
        assert step.critic_norm == pytest.approx(line["val/grad_norm"], rel=1e-6)
    assert any(step.policy_norm > SETTINGS["max_grad_norm"] for step in history)
    assert max(line["clip_ratio/region_mean"] for line in lines) > 0.02
    assert max(line["val/clipfrac_avg"] for line in lines) > 0.02
    for mine, theirs, start in ((policy, trainer.policy, ending_model()), (critic, trainer.critic, value_model())):
        assert relative_distance(flat(mine), flat(theirs)) < 1e-6
        assert relative_distance(flat(mine), flat(start)) > 1e-3


def test_the_script_learns(capsys):
    means = ppo_loop.main()
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.1
    assert capsys.readouterr().out.startswith("round  0  reward 0.")


def test_it_needs_torch_and_transformers_alone_and_fits_in_250_lines():
    source = LOOP.read_text()
    imports = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"__future__", "collections", "copy", "torch", "transformers", "typing"}
    assert len(source.splitlines()) <= 250
