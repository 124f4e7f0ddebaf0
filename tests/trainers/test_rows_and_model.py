"""Rows meet a model: tokens that it does not know, padding that it does not know, rows given to an evaluation."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from burnish import DPOConfig, DPOTrainer, SFTTrainer
from conftest import make_model, make_rows, make_tokenizer

ROWS = [{"row_id": 3 + i, "prompt": f"Sky {i}?", "chosen": " blue" * (i + 1), "rejected": " red"} for i in range(4)]
IDS = {"prompt_input_ids": [5, 6], "chosen_input_ids": [7, 8], "rejected_input_ids": [9]}


def make(tmp_path, rows=ROWS, *, tokenizer=None, trainer_class=DPOTrainer, **options):
    config_class = trainer_class.config_class
    options = {"max_steps": 1, "save_strategy": "no", "cpu_tuning": "off", "per_device_train_batch_size": 4, **options}
    args = config_class(output_dir=str(tmp_path / "run"), report_to="none", **options)
    return trainer_class(make_model(), args, train_dataset=rows, processing_class=tokenizer or make_tokenizer())


@pytest.mark.parametrize("trainer_class", [DPOTrainer, SFTTrainer])
def test_a_token_that_the_model_does_not_know_names_its_row(tmp_path, trainer_class):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    rows = [*ROWS, {**ROWS[0], "row_id": 40, "chosen": " a <new> one"}]
    with pytest.raises(ValueError, match="row 40 of train has the token id 259, and LlamaForCausalLM has 259"):
        make(tmp_path, rows, tokenizer=tokenizer, trainer_class=trainer_class)
    assert make(tmp_path, tokenizer=tokenizer, trainer_class=trainer_class)


@pytest.mark.parametrize(("trainer_class", "layout"), [(DPOTrainer, "off"), (SFTTrainer, "off")])
def test_padding_that_the_model_does_not_know_changes_nothing(tmp_path, trainer_class, layout):
    """A pad token added to the tokenizer alone, as many scripts do; rows of different lengths are padded."""
    added = make_tokenizer()
    added.add_special_tokens({"pad_token": "<PAD>"})
    assert added.pad_token_id == len(make_model().get_input_embeddings().weight)
    losses = []
    for number, tokenizer in enumerate((added, make_tokenizer())):
        options = {"prefix_sharing": layout, "logging_steps": 1}
        trainer = make(tmp_path / str(number), tokenizer=tokenizer, trainer_class=trainer_class, **options)
        trainer.train()
        losses.append(trainer.state.log_history[0]["grad_norm"])
    assert losses[0] == losses[1]


def test_rows_of_token_ids_are_evaluated_as_they_are_trained(tmp_path):
    rows = Dataset.from_list([IDS, {**IDS, "chosen_input_ids": [10, 11, 12]}])
    trainer = make(tmp_path, rows)
    expected = trainer.evaluate(trainer.train_dataset)["eval_logps/chosen"]
    assert trainer.evaluate(rows)["eval_logps/chosen"] == pytest.approx(expected, rel=1e-6)


def test_predict_measures_rows_of_any_form(tmp_path):
    trainer = make(tmp_path)
    found = trainer.predict(make_rows(3), metric_key_prefix="test").metrics
    torch.testing.assert_close(found["test_loss"], trainer.evaluate(make_rows(3))["eval_loss"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loss_type": []}, "loss_type is empty"),
        ({"loss_weights": [float("nan")]}, r"loss_weights=\[nan\]; allowed: a list of finite numbers"),
        ({"loss_weights": ["a"]}, "allowed: a list of finite numbers"),
        ({"loss_weights": 1.0}, "allowed: a list of finite numbers"),
        ({"loss_weights": [0]}, "that are not all 0"),
    ],
)
def test_a_sum_of_losses_that_is_none(options, problem):
    with pytest.raises(ValueError, match=problem):
        DPOConfig(output_dir="x", **options)
