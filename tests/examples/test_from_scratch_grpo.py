"""The loop without a library and `GRPOTrainer` are the same training, step by step."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "from_scratch"))
sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
import grpo_loop
from online_training import ending_model, make_online_trainer, step_lines
from training import relative_distance

from burnish.generation.base import Prompt
from burnish.generation.native import NativeGenerator

LOOP = Path(__file__).parents[2] / "examples" / "from_scratch" / "grpo_loop.py"
SETTINGS = {"learning_rate": 3e-3, "weight_decay": 0.01, "max_grad_norm": 0.5}


def even_eighths(completion_ids, **_):
    """An eighth for each even token: sums and squares are exact in float32, so that the advantages are the same."""
    return [sum(token % 2 == 0 for token in ids) / 8 for ids in completion_ids]


class Draw:
    """The answers of the loop's own policy, with the trainer's prompts and random numbers."""

    def __init__(self, trainer):
        """Keeps what answers depend on; the trainer's own stream of prompts does not move."""
        self.trainer, self.stream = trainer, copy.deepcopy(trainer.prompt_stream)
        self.answers: list[list[int]] = []

    def __call__(self, model, number: int) -> list[grpo_loop.Group]:
        trainer = self.trainer
        visits = self.stream.take(trainer.plan.prompts)
        rows = trainer.prompt_rows(trainer.train_dataset, [visit.row for visit in visits])
        keys = [replace(row, epoch=visit.epoch).key for row, visit in zip(rows, visits, strict=True)]
        size = trainer.plan.num_generations
        completions = NativeGenerator(model, pad_token_id=0).generate(
            [Prompt(ids=row.ids, key=key) for row, key in zip(rows, keys, strict=True)],
            trainer.sampling,
            num_samples=size,
            seed=trainer.args.seed,
            round_index=number,
        )
        ids = [completion.token_ids.tolist() for completion in completions]
        self.answers += ids
        groups = [ids[start : start + size] for start in range(0, len(ids), size)]
        return [
            grpo_loop.Group(row.ids.tolist(), group, even_eighths(group))
            for row, group in zip(rows, groups, strict=True)
        ]


def taken_answers(trainer, is_first_pass=lambda: True) -> list[list[int]]:
    """The answers of the parcels that the trainer will take, those of a first pass over a round."""
    answers: list[list[int]] = []
    own = trainer.take_parcels

    def take(*arguments):
        is_new = is_first_pass()
        parcels = own(*arguments)
        for parcel in parcels if is_new else ():
            rows = zip(parcel.completion_ids, parcel.completion_mask, strict=True)
            answers.extend(ids[mask].tolist() for ids, mask in rows)
        return parcels

    trainer.take_parcels = take
    return answers


@pytest.mark.parametrize(
    ("steps", "beta", "ref_seed"), [(1, 0.0, None), (2, 0.2, None), (2, 0.2, 1)], ids=["plain", "kl", "reference"]
)
def test_every_step_equals_the_trainers(tmp_path, steps, beta, ref_seed):
    """The same answers, loss, gradient norm and weights to 1e-6 over three rounds, in micro-batches of half a step."""
    trainer = make_online_trainer(
        tmp_path,
        reward_funcs=even_eighths,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        steps_per_generation=2 * steps,
        max_steps=3 * steps,
        beta=beta,
        ref_seed=ref_seed,
        **SETTINGS,
    )
    draw, model = Draw(trainer), ending_model()
    reference = None if ref_seed is None else ending_model(ref_seed)
    history = grpo_loop.train(
        model, draw, num_rounds=3, steps_per_round=steps, reference=reference, beta=beta, **SETTINGS
    )

    answers = taken_answers(trainer)
    trainer.train()
    lines = step_lines(trainer)

    assert answers == draw.answers
    assert len(history) == len(lines) == 3 * steps
    for step, line in zip(history, lines, strict=True):
        assert step.loss == pytest.approx(line["loss"], rel=1e-6, abs=1e-6)
        assert step.grad_norm == pytest.approx(line["grad_norm"], rel=1e-6)
    assert any(step.grad_norm > SETTINGS["max_grad_norm"] for step in history)
    assert (max(line["clip_ratio/region_mean"] for line in lines) > 0.02) == (steps > 1)
    start, mine, theirs = (flat(module) for module in (ending_model(), model, trainer.model))
    assert relative_distance(mine, theirs) < 1e-6
    assert relative_distance(mine, start) > 1e-3


def flat(module) -> torch.Tensor:
    """All weights; compared as a whole, since Adam makes a step of rounding where a gradient is nearly 0."""
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def test_the_script_learns(capsys):
    means = grpo_loop.main()
    assert sum(means[-3:]) / 3 > sum(means[:3]) / 3 + 0.2
    assert capsys.readouterr().out.startswith("round  0  reward 0.")


def test_it_needs_torch_and_transformers_alone_and_fits_in_200_lines():
    source = LOOP.read_text()
    imports = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"__future__", "collections", "copy", "torch", "transformers", "typing"}
    assert len(source.splitlines()) <= 200
