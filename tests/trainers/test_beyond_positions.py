"""Rows that are longer than the model's positions are told when the run starts, of every trainer of rows."""

from __future__ import annotations

import pytest

from burnish import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from conftest import make_model, make_tokenizer

ROWS = [
    {"row_id": 7, "prompt": "a" * 60, "chosen": " b", "rejected": " c"},
    {"row_id": 8, "prompt": "a" * 50, "chosen": " bbbbbb", "rejected": " c"},
    {"row_id": 9, "prompt": "d", "chosen": "f", "rejected": "e" * 100},
]


def findings(trainer_class, config_class, tmp_path, *, positions, eval_dataset=None):
    args = config_class(output_dir=str(tmp_path), report_to="none", max_length=None)
    model, tokenizer = make_model(max_position_embeddings=positions), make_tokenizer()
    trainer = trainer_class(model, args, train_dataset=ROWS, eval_dataset=eval_dataset, processing_class=tokenizer)
    return [item for item in trainer.findings if item.code == "beyond_positions"]


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "rows"),
    [(DPOTrainer, DPOConfig, (7, 9)), (KTOTrainer, KTOConfig, (7, 8, 9)), (SFTTrainer, SFTConfig, (7,))],
)
def test_rows_beyond_the_positions_of_a_model_are_named(trainer_class, config_class, rows, tmp_path):
    """60 + 3, 50 + 8 and 1 + 101 tokens with the end token, for 60 positions; KTO adds answers of other rows."""
    (finding,) = findings(trainer_class, config_class, tmp_path, positions=60)
    assert finding.rows[-1] == rows[-1]
    assert set(rows) >= set(finding.rows) >= {7}
    assert finding.message.endswith("max_length=60")


def test_held_out_rows_are_looked_at_too(tmp_path):
    train, held_out = findings(DPOTrainer, DPOConfig, tmp_path, positions=60, eval_dataset=ROWS[2:])
    assert (train.count, train.rows) == (2, (7, 9))
    assert held_out.message.startswith("1 rows of eval have up to 102 tokens; the model was made for 60")


def test_rows_that_fit_have_no_finding(tmp_path):
    assert findings(DPOTrainer, DPOConfig, tmp_path, positions=102) == []
