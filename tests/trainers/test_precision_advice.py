from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from burnish.runtime import cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "invariants"))
from training import make_trainer


@pytest.mark.parametrize(("speedup", "bf16", "told"), [(0.5, True, True), (2.0, True, False), (0.5, False, False)])
def test_a_run_in_slow_bfloat16_says_so(tmp_path, monkeypatch, speedup, bf16, told):
    """Twice as long as float32: the run tells, where bfloat16 was asked for."""
    monkeypatch.setattr(cpu, "bfloat16_speedup", lambda: speedup)
    trainer = make_trainer(tmp_path, bf16=bf16, max_steps=1, cpu_tuning="auto")
    trainer.train()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    messages = [event["message"] for event in events if event["kind"] == "slow_bfloat16"]
    assert len(messages) == told
    assert all("takes 2.0 times as long as in float32" in message for message in messages)
