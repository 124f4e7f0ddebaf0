"""Random states: the numbers after a restore are the numbers that came after the save."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from burnish.runtime.checkpoint import load_tree, save_tree
from burnish.runtime.rng import restore_rng_state, rng_state


def draw() -> list:
    """Numbers of every generator, the buffered second normal included."""
    return [
        [random.random(), random.gauss(0, 1), random.randrange(1 << 40)],
        [*np.random.random(3), np.random.normal(), np.random.randint(1 << 30)],
        [*torch.rand(5).tolist(), *torch.randn(17).tolist(), *torch.randperm(7).tolist()],
    ]


@pytest.mark.parametrize("draws_before", [0, 1, 2, 5])
def test_the_same_numbers_come_after_a_round_trip(tmp_path, draws_before):
    for _ in range(draws_before):
        draw()
    save_tree(tmp_path, "rng", rng_state())
    expected = [draw() for _ in range(3)]
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    restore_rng_state(load_tree(tmp_path, "rng"))
    assert [draw() for _ in range(3)] == expected


def test_taking_the_state_draws_nothing():
    before = rng_state()
    expected = draw()
    restore_rng_state(before)
    rng_state()
    assert draw() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuda": [torch.zeros(16, dtype=torch.uint8)] * 3}, "CUDA devices: 3 saved, "),
        (
            {"numpy": {**rng_state()["numpy"], "bit_generator": "PCG64"}},
            "numpy generator: PCG64 saved, MT19937 here",
        ),
    ],
)
def test_a_state_of_another_machine_changes_nothing(change, message):
    state = rng_state()
    with pytest.raises(ValueError, match=message):
        restore_rng_state({**state, **change})
    expected = draw()
    restore_rng_state(state)
    assert draw() == expected
