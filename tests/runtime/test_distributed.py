from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from burnish.runtime.distributed import barrier, gather_lines, gather_rows, is_distributed, sum_over_ranks


def test_one_process_needs_no_group():
    numbers = torch.tensor([1.0, 2.0])
    rows = torch.arange(6.0).view(3, 2)
    assert not is_distributed()
    assert sum_over_ranks(numbers) is numbers
    gathered, start = gather_rows(rows)
    assert gathered is rows
    assert start == 0
    assert gather_lines(["a", ""]) == ["a", ""]
    barrier()


RANK = """
import json, sys
import torch
import torch.distributed as dist
from burnish.runtime.distributed import barrier, gather_lines, gather_rows, is_distributed, sum_over_ranks

rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
numbers = torch.tensor([1.0 + rank, 10.0], dtype=torch.float64)
total = sum_over_ranks(numbers)
results = {"distributed": is_distributed(), "sum": total.tolist(), "untouched": numbers.tolist(), "gathered": []}
for sizes in [(2, 2), (3, 1), (0, 2), (2, 0), (0, 0)]:
    rows = 100.0 * rank + torch.arange(2.0 * sizes[rank]).view(sizes[rank], 2)
    everything, start = gather_rows(rows)
    own = everything[start : start + sizes[rank]]
    results["gathered"].append([everything.tolist(), start, torch.equal(own, rows)])
results["lines"] = [gather_lines(lines[rank]) for lines in [(["a ä", ""], ["b"]), ([], ["b", "c"]), ([], [])]]
barrier()
print(json.dumps(results))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tmp_path):
    """Sums, and rows of unequal number in rank order, also where a rank has none."""
    command = [sys.executable, "-c", RANK]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    first, second = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert first["distributed"] is second["distributed"] is True
    assert first["sum"] == second["sum"] == [3.0, 20.0]
    assert (first["untouched"], second["untouched"]) == ([1.0, 10.0], [2.0, 10.0])
    assert first["lines"] == second["lines"] == [["a ä", "", "b"], ["b", "c"], []]
    mine, other = [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[100.0, 101.0], [102.0, 103.0]]
    whole = [mine[:2] + other, mine + other[:1], other, mine[:2], []]
    for results, starts in [(first, [0, 0, 0, 0, 0]), (second, [2, 3, 0, 2, 0])]:
        assert [gathered for gathered, _, _ in results["gathered"]] == whole
        assert [start for _, start, _ in results["gathered"]] == starts
        assert all(own for _, _, own in results["gathered"])
