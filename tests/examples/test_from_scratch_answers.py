"""SFT and KTO without a library are the trainers' own steps."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from conftest import make_model

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "from_scratch"))
sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))
import kto_loop
import sft_loop
from answer_training import judged_rows, make_trainer

ROOT = Path(__file__).parents[2]
SETTINGS = {"learning_rate": 2e-3, "weight_decay": 0.01, "warmup_steps": 2, "max_grad_norm": 0.3}
SIZES = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


def tokens(batch, row: int) -> tuple[list[int], list[int]]:
    """Prompt and answer of a row of a parcel, without padding."""
    prompt = int(batch.prompt_index[row])
    of_prompt = batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist()
    return of_prompt, batch.completion_ids[row][batch.completion_mask[row]].tolist()


def parcels(trainer) -> list:
    loader = trainer.get_train_dataloader()
    loader.set_epoch(0)
    return list(loader)


def assert_same(trainer, model, history, metrics):
    """Every step's numbers, and the final weights."""
    trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]
    assert len(history) == len(lines) == 3
    for step, line in zip(history, lines, strict=True):
        for name in metrics:
            assert getattr(step, name) == pytest.approx(line[name], rel=1e-6, abs=1e-9)
    assert any(step.grad_norm > SETTINGS["max_grad_norm"] for step in history)
    trained, start = trainer.model.state_dict(), make_model(0, torch.float64).state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-5, atol=1e-8)
    assert max(float((trained[name] - start[name]).abs().max()) for name in start) > 1e-4


def test_every_step_of_sft_equals_the_trainers(tmp_path):
    rows = [{"prompt": f"Question {i}?", "completion": f" {'word ' * (i % 5)}{i}"} for i in range(11)]
    trainer = make_trainer("sft", tmp_path, rows=rows, **SIZES, **SETTINGS)
    model = make_model(0, torch.float64)
    batches = [[sft_loop.Example(*tokens(batch, row)) for row in range(len(batch))] for batch in parcels(trainer)]
    history = sft_loop.train(model, batches, accumulation=2, **SETTINGS)
    assert_same(trainer, model, history, ("loss", "grad_norm"))


def judged_of(batch) -> list[kto_loop.Judged]:
    """The own answer of each prompt with the one to another prompt behind it."""
    rows = range(0, len(batch), 2)
    return [
        kto_loop.Judged(*tokens(batch, row), tokens(batch, row + 1)[1], bool(batch.columns["label"][row]))
        for row in rows
    ]


@pytest.mark.parametrize("ref_seed", [None, 1], ids=["copy", "given reference"])
def test_every_step_of_kto_equals_the_trainers(tmp_path, ref_seed):
    trainer = make_trainer("kto", tmp_path, rows=judged_rows(11), ref_seed=ref_seed, beta=0.2, **SIZES, **SETTINGS)
    model = make_model(0, torch.float64)
    reference = None if ref_seed is None else copy.deepcopy(make_model(ref_seed, torch.float64))
    batches = [judged_of(batch) for batch in parcels(trainer)]
    history = kto_loop.train(model, batches, reference=reference, accumulation=2, beta=0.2, **SETTINGS)
    assert_same(trainer, model, history, ("loss", "grad_norm", "kl"))


def test_the_scripts_learn(capsys):
    supervised = sft_loop.main()
    assert supervised[-1].loss < supervised[0].loss - 0.8
    judged = kto_loop.main()
    assert judged[0].loss == pytest.approx(0.5, abs=1e-6)
    assert judged[-1].loss < 0.47
    assert capsys.readouterr().out.count("step  1") == 2


@pytest.mark.parametrize("name", ["sft_loop", "kto_loop"])
def test_they_need_torch_transformers_and_the_loop_of_dpo_alone(name):
    source = (ROOT / "examples" / "from_scratch" / f"{name}.py").read_text()
    imports = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= {"__future__", "collections", "copy", "dpo_loop", "itertools", "torch", "transformers", "typing"}
    assert len(source.splitlines()) <= 140
