"""Where the time of one step goes, by torch's profiler; part of an arm whose job says `profile`."""

from __future__ import annotations

from typing import Any

from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

LONGEST = 15


class StepProfiler(TrainerCallback):
    """Profiles the second step, from the first one's end to its own."""

    def __init__(self) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.rows: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start after the first step, stop after the second."""
        if state.global_step == 1:
            self.profiler.start()
        elif state.global_step == 2:
            self.profiler.stop()
            averages = sorted(self.profiler.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
            whole = sum(entry.self_cpu_time_total for entry in averages)
            self.rows = [
                {
                    "operation": entry.key,
                    "seconds": entry.self_cpu_time_total / 1e6,
                    "share": entry.self_cpu_time_total / max(whole, 1e-9),
                    "calls": entry.count,
                }
                for entry in averages[:LONGEST]
            ]
