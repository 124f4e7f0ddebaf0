"""A round over all ranks: every rank computes the same numbers, and takes its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from whole_ranks import ANSWERS, REWARDS, part, seen


def test_on_one_process_the_round_is_the_whole():
    found = part(range(4), turns=True, tokens=True)
    whole, batch = found.whole, found.batch
    assert (whole.start, whole.num_rows) == (0, 8)
    assert whole.mask is batch.loss_mask
    assert whole.turn_index is batch.turn_index
    assert torch.equal(whole.rewards.token_rewards, found.groups.rewards.token_rewards)
    values = torch.arange(8)
    assert torch.equal(whole.mine(values), values)


def test_solve_rates_are_those_of_rows():
    """Totals at least 1.25 of rows 30, 10, 20, 0: one of 1.25 and 0; none of 0.75; 3 and 1.5; one of 1 and 2.05."""
    rates = part(range(4), turns=False, tokens=False).whole.solve_rates(1.25)
    assert rates == {30: 0.5, 10: 0.0, 20: 1.0, 0: 0.5}


def ranks(tmp_path: Path, **options) -> list[dict]:
    command = [sys.executable, str(Path(__file__).parent / "whole_ranks.py")]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store"), json.dumps(options)], stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    return [json.loads(process.communicate(timeout=120)[0]) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("turns", [False, True], ids=["one turn", "turns"])
def test_two_ranks_see_the_round_that_one_process_would(tmp_path, turns):
    """Answers of up to 3 tokens on one rank and 6 on the other; advantages are those of one process."""
    first, second = ranks(tmp_path, turns=turns, tokens=False)
    one = seen(part(range(4), turns=turns, tokens=False))
    if not turns:
        one["turn_index"] = [[0] * 6] * 8  # a rank does not know whether another one has turns
    for rank in (first, second):
        assert {k: v for k, v in rank.items() if k not in ("mine", "advantages", "rewards")} == {
            k: v for k, v in one.items() if k not in ("mine", "advantages", "rewards")
        }
        assert torch.allclose(torch.tensor(rank["rewards"]), torch.tensor(REWARDS), equal_nan=True, rtol=0, atol=0)
    assert first["mine"] + second["mine"] == one["mine"]
    for name, values in one["advantages"].items():
        assert first["advantages"][name] + second["advantages"][name] == values


@pytest.mark.slow
def test_rewards_of_tokens_on_one_rank_alone(tmp_path):
    """The other rank has none: 0 for its answers, and for the padding up to the longest answer of any rank."""
    first, second = ranks(tmp_path, turns=False, tokens=True)
    width = max(map(len, ANSWERS))
    expected = torch.zeros(8, width)
    expected[:4, :3] = torch.arange(12.0).view(4, 3)
    assert first["token_rewards"] == second["token_rewards"] == expected.tolist()
