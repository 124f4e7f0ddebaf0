"""The tables of the rollout benchmark, without a rollout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import rollout


def process(seconds: list[float], *, step: float) -> dict:
    """A result of an arm: a rollout to warm up, 100 tokens each, as long a step for 8 rows as for 32."""
    return {"seconds": [99.0, *seconds], "drawn_tokens": 100, "step_seconds": {"8": step, "32": step}}


RESULTS = {
    rollout.PEER: [process([8.0, 6.0, 7.0], step=0.1), process([12.0], step=0.1)],
    rollout.PEER_TUNED: [process([4.0], step=0.1), process([6.0], step=0.1)],
    rollout.OURS: [process([2.0], step=0.05), process([2.0], step=0.05)],
}


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_ratios_are_of_paired_processes():
    """The warm-up is left out: 7 / 2 and 12 / 2, median 4.75; tuned 4 / 2 and 6 / 2."""
    *_, ours = cells(rollout.rollout_table(RESULTS))
    assert ours == ["Burnish", "2.00", "50", "4.75 (3.50–6.00)", "2.50 (2.00–3.00)"]


def test_the_roof_is_the_higher_of_reading_and_multiplying():
    """8 rows: reading, 20 of 50 ms. 32 rows: multiplying, 32 of 50 ms."""
    roof = {"read_seconds": 0.02, "multiply_seconds_per_row": 0.001}
    rows = [row for row in cells(rollout.roof_table(RESULTS, roof)) if row[1] == "Burnish"]
    assert rows == [["8", "Burnish", "50.0", "20.0", "8.0", "0.40"], ["32", "Burnish", "50.0", "20.0", "32.0", "0.64"]]


def test_a_size_is_four_numbers():
    assert str(rollout.Size.of("2x8x64x256")) == "2 prompts of 256 tokens x 8 answers of 64"
    with pytest.raises(argparse.ArgumentTypeError, match="four numbers are needed"):
        rollout.Size.of("2x8x64")
