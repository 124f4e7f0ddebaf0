"""What both GRPO arms record. Imports the standard library, torch and transformers: it runs in two environments.

Each arm trains twice: one step on the frozen rollout, whose loss, KL and gradient norm are compared, and then the steps
that are timed, on answers that the library draws itself.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import StepClock, reset_peak_memory, resident_memory, versions

PHASES = {"generate": "_generate", "score": "_calculate_rewards"}


def training_options(job: dict[str, Any], *, frozen: bool) -> dict[str, Any]:
    """The options that both libraries get, under the names that both know."""
    rows = job["num_prompts"] * job["num_generations"]
    return {
        "output_dir": job["output_dir"] + ("-frozen" if frozen else ""),
        "max_steps": 1 if frozen else job["num_steps"],
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1,
        "num_generations": job["num_generations"],
        "num_iterations": 2 if frozen else 1,  # two passes: then both libraries score the old policy
        "max_completion_length": job["new_tokens"],
        "temperature": 1.0,
        "loss_type": "grpo",
        "beta": 0.04,
        "epsilon": 0.2,
        "scale_rewards": "group",
        "use_bias_correction_kl": True,
        "shuffle_dataset": False,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": job["precision"] == "bfloat16",
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def frozen_reward(job: dict[str, Any]) -> Callable[..., list[float]]:
    """The rewards of the frozen rollout, by the answer's position."""

    def frozen(completions: list[Any], **_: Any) -> list[float]:
        assert len(completions) == len(job["frozen"]["rewards"])
        return list(job["frozen"]["rewards"])

    return frozen


def length_reward(completions: list[Any], **_: Any) -> list[float]:
    """Something cheap that differs within a group: how many letters of an answer are e."""
    return [text.count("e") / 10 for text in completions]


class Phases:
    """Seconds inside methods of a trainer, step by step."""

    def __init__(self, trainer: Any) -> None:
        self.seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
        for phase, name in PHASES.items():
            setattr(trainer, name, self._timed(phase, getattr(trainer, name)))

    def _timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = method(*args, **kwargs)
            self.seconds[phase].append(time.perf_counter() - started)
            return result

        return timed


def run(job: dict[str, Any], make_trainer: Callable[[bool], Any], *, library: str) -> None:
    """The frozen step and the timed ones, and the result that the job asks for.

    Args:
        job: as `read_job` gave it.
        make_trainer: frozen -> a trainer that is ready to train, its model freshly loaded.
        library: the distribution whose version is reported.
    """
    first = first_step(make_trainer(True))
    gc.collect()
    trainer = make_trainer(False)
    clock, phases = StepClock(), Phases(trainer)
    trainer.add_callback(clock)
    gc.collect()
    loaded = resident_memory("VmRSS")
    can_reset = reset_peak_memory()
    trainer.train()
    peak = resident_memory("VmHWM") if can_reset else None
    seconds = clock.steps("seconds")
    drawn = job["num_prompts"] * job["num_generations"] * job["new_tokens"]
    result = {
        "library": library,
        "versions": versions(library),
        "threads": torch.get_num_threads(),
        "matmul_precision": clock.matmul_precision,
        "first_step": first,
        "steps": [{"useful_tokens": drawn + job["prompt_tokens_a_step"]} for _ in seconds],
        "seconds": seconds,
        "phases": {
            **phases.seconds,
            "update": [
                total - generate - score
                for total, generate, score in zip(
                    seconds, phases.seconds["generate"], phases.seconds["score"], strict=True
                )
            ],
        },
        "cpu_seconds": clock.steps("cpu_seconds"),
        "page_faults": clock.steps("page_faults"),
        "loaded_bytes": loaded,
        "peak_bytes": peak,
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def first_step(trainer: Any) -> dict[str, float]:
    """Loss, KL and gradient norm of one step on the frozen rollout."""
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    return {name: float(line[name]) for name in ("loss", "kl", "grad_norm")}
