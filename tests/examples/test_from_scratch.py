"""The loop without a library and `DPOTrainer` are the same training, step by step."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from burnish import DPOConfig, DPOTrainer
from conftest import make_model, make_rows, make_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "from_scratch"))
import dpo_loop

EXAMPLES = Path(__file__).parents[2] / "examples"

NUM_ROWS = 27  # micro-batches of 2, two in a step: six steps of 4 pairs, then one of 2 + 1
SETTINGS = {"beta": 0.2, "learning_rate": 2e-3, "weight_decay": 0.01, "warmup_steps": 2, "max_grad_norm": 0.5}


def make_trainer(output_dir: Path, ref_model) -> DPOTrainer:
    return DPOTrainer(
        make_model(0, torch.float64),
        args=DPOConfig(
            output_dir=str(output_dir),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            cpu_tuning="off",
            **SETTINGS,
        ),
        ref_model=ref_model,
        train_dataset=make_rows(NUM_ROWS),
        processing_class=make_tokenizer(),
    )


def plain_batches(trainer: DPOTrainer) -> list[list[dpo_loop.Pair]]:
    """The trainer's micro-batches in its order, as lists of token ids without padding."""
    loader = trainer.get_train_dataloader()
    loader.set_epoch(0)
    return [[pair_of(batch, index) for index in range(len(batch.pairs))] for batch in loader]


def pair_of(batch, index: int) -> dpo_loop.Pair:
    assert torch.equal(batch.loss_mask, batch.completion_mask)  # nothing in the answers is left untrained
    chosen, rejected = batch.pairs[index].tolist()
    prompt = int(batch.prompt_index[chosen])
    return dpo_loop.Pair(
        batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist(),
        batch.completion_ids[chosen][batch.completion_mask[chosen]].tolist(),
        batch.completion_ids[rejected][batch.completion_mask[rejected]].tolist(),
    )


@pytest.mark.parametrize("ref_seed", [None, 1], ids=["copy", "given reference"])
def test_every_step_equals_the_trainers(tmp_path, ref_seed):
    """Loss, gradient norm and margins to 1e-6, final weights to 1e-8 absolute, in float64; norms are computed in float32."""
    reference = None if ref_seed is None else make_model(ref_seed, torch.float64)
    trainer = make_trainer(tmp_path, ref_model=copy.deepcopy(reference))
    model = make_model(0, torch.float64)
    batches = plain_batches(trainer)
    history = dpo_loop.train(model, batches, reference=reference, accumulation=2, **SETTINGS)

    trainer.train()
    lines = [line for line in trainer.state.log_history if "grad_norm" in line]

    assert [len(pairs) for pairs in batches[-2:]] == [2, 1]
    assert len(history) == len(lines) == 7
    for step, line in zip(history, lines, strict=True):
        assert step.loss == pytest.approx(line["loss"], rel=1e-6)
        assert step.grad_norm == pytest.approx(line["grad_norm"], rel=1e-6)
        assert step.margin == pytest.approx(line["rewards/margins"], rel=1e-6, abs=1e-9)
    assert any(step.grad_norm > SETTINGS["max_grad_norm"] for step in history)
    moved = 0.0
    start = make_model(0, torch.float64).state_dict()
    trained = trainer.model.state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, trained[name], rtol=1e-5, atol=1e-8)
        moved = max(moved, float((weight - start[name]).abs().max()))
    assert moved > 1e-3


def test_the_script_learns(capsys):
    history = dpo_loop.main()
    assert history[0].loss == pytest.approx(0.693147, abs=1e-5)
    assert history[-1].loss < 0.6
    assert history[-1].margin > 0.2
    assert capsys.readouterr().out.startswith("step  1  loss 0.6931")


def test_it_needs_torch_and_transformers_alone_and_fits_in_200_lines():
    source = (EXAMPLES / "from_scratch" / "dpo_loop.py").read_text()
    imports = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"__future__", "collections", "copy", "torch", "transformers", "typing"}
    assert len(source.splitlines()) <= 200
