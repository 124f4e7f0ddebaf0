from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from burnish.runtime import cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer


@pytest.mark.parametrize(
    ("speedup", "bf16", "told"),
    [
        (0.5, True, ["slow_bfloat16"]),
        (2.0, True, []),
        (0.5, False, []),
        (1.5, False, []),
        (7.4, False, ["fast_bfloat16"]),
    ],
)
def test_a_run_in_the_slower_precision_says_so(tmp_path, monkeypatch, speedup, bf16, told):
    """Where bfloat16 was asked for and is slower, and where it was not and is much faster."""
    monkeypatch.setattr(cpu, "bfloat16_speedup", lambda: speedup)
    trainer = make_trainer(tmp_path, dtype=torch.float32, bf16=bf16, max_steps=1, cpu_tuning="auto")
    trainer.train()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    found = {event["kind"]: event["message"] for event in events if event["kind"].endswith("_bfloat16")}
    assert list(found) == told
    words = {"slow_bfloat16": "takes 2.0 times as long as in float32", "fast_bfloat16": "is 7.4 times as fast"}
    assert all(words[kind] in message for kind, message in found.items())
