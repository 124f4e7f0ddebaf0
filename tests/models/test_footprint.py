from __future__ import annotations

import pytest

from burnish.models.footprint import HEAD_BYTES, PROCESS_BYTES, Training, checkpoint_bytes, memory_parts
from burnish.models.size import ModelShape

SMOLLM2 = ModelShape(layers=30, hidden=576, inner=1536, query=576, key=192, vocabulary=49152)
PARAMETERS = 134_515_008


def test_parts_by_hand():
    """P = 10, w = 4, AdamW; one layer of h = 2, i = 3, q = 2, k = 1: 4·3 + 8·2 + 3·2 + 2·1 = 36 numbers a token."""
    shape = ModelShape(layers=1, hidden=2, inner=3, query=2, key=1, vocabulary=5)
    assert memory_parts(10, shape, Training(num_tokens=7)) == {
        "weights": 40,
        "gradients": 40,
        "optimizer": 80,
        "reference": 40,
        "activations": 7 * 36 * 4,
        "head": HEAD_BYTES,
        "process": PROCESS_BYTES,
    }


def test_what_each_option_changes():
    def parts(**options):
        return memory_parts(PARAMETERS, SMOLLM2, Training(num_tokens=1000, **options))

    plain = parts()
    assert plain["activations"] == 1000 * 30 * (4 * 1536 + 8 * 576 + 3 * 576 + 2 * 192) * 4
    assert "reference" not in parts(has_reference=False)
    assert parts(is_autocast=True)["activations"] == plain["activations"] // 2
    assert parts(is_autocast=True)["autocast"] == 2 * PARAMETERS
    assert parts(is_checkpointed=True)["activations"] < plain["activations"] / 10
    assert parts(weight_bytes=2)["gradients"] == plain["gradients"] // 2
    assert "optimizer" not in parts(optimizer_states=0)
    assert "activations" not in memory_parts(PARAMETERS, None, Training(num_tokens=1000))


def test_the_measured_peak_of_the_documentation():
    """docs/preview.md: two steps of the recipe's rows, 4 pairs, 8 rows x 151 tokens, float32: 5.24 GB resident."""
    estimate = sum(memory_parts(PARAMETERS, SMOLLM2, Training(num_tokens=8 * 151)).values())
    assert estimate == pytest.approx(5.24e9, rel=0.1)


def test_checkpoints():
    training = Training(num_tokens=1)
    assert checkpoint_bytes(PARAMETERS, training) == 12 * PARAMETERS
    assert checkpoint_bytes(PARAMETERS, training, is_model_only=True) == 4 * PARAMETERS
