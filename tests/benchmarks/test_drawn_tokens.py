"""What counts as drawn where a library pads its answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "arms"))
import ppo_measure


@pytest.mark.parametrize(("stop", "expected"), [(2, 2 + 4 + 1), (None, 12), (9, 12)])
def test_tokens_count_up_to_the_first_stop_token(stop, expected):
    answers = torch.tensor([[5, 2, 0, 0], [5, 6, 7, 8], [2, 2, 0, 2]])
    assert ppo_measure.num_drawn(answers, stop) == expected
