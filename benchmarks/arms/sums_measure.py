"""A full run in either library, its weights saved at given steps while the clock stands still.

How right the answers of these weights are is found out afterwards, by one piece of code for both (`sums_evaluate.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import StepClock, loaded_bytes, start_job, train, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

EVALUATION = ("per_device_eval_batch_size", "num_generations_eval", "eval_temperature", "eval_greedy")


class Snapshots(TrainerCallback):
    """Saves the policy before the first step and after each of the given ones."""

    def __init__(self, directory: str, points: list[int], clock: StepClock) -> None:
        self.directory, self.points, self.clock = Path(directory), points, clock

    def save(self, model: Any, step: int) -> None:
        """The weights and what is needed to load them."""
        model.save_pretrained(self.directory / f"{step:04d}")

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Save, if this step is one of the points."""
        if state.global_step in self.points:
            with self.clock.paused():
                self.save(model, state.global_step)


def run(*, library: str, make_trainer: Callable[[dict[str, Any], dict[str, Any], Any, Any], Any]) -> None:
    """Train the job that the command line names, and write its result.

    Args:
        library: the distribution whose version is reported.
        make_trainer: job, options, policy, tokenizer -> a trainer with nothing run yet.
    """
    job = start_job()
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    clock = StepClock()
    snapshots = Snapshots(job["snapshots"], job["points"], clock)
    snapshots.save(policy, 0)
    loaded = loaded_bytes(policy)
    trainer = make_trainer(job, training_options(job), policy, AutoTokenizer.from_pretrained(job["model"]))
    write_result(job, train(job, trainer, library=library, loaded=loaded, clock=clock, callbacks=[snapshots]))


def training_options(job: dict[str, Any]) -> dict[str, Any]:
    """The recipe's options, as far as both libraries know them; evaluation is done elsewhere."""
    recipe = {name: value for name, value in job["training"].items() if name not in EVALUATION}
    return {
        **recipe,
        "output_dir": job["output_dir"],
        "max_steps": job["points"][-1],
        "seed": job["seed"],
        "save_strategy": "no",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
