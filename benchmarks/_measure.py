"""What both arms record, so that neither library is measured by its own clock.

It runs in two environments, Burnish's and the peer's, so it imports the standard library, torch and transformers.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback

COMMON_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy")


@dataclass(frozen=True)
class Row:
    """One trained sequence: prompt and answer without padding, and which of its tokens are trained."""

    ids: list[int]
    trained: list[bool]

    @property
    def num_prompt(self) -> int:
        """Tokens before the first trained one."""
        return self.trained.index(True)


class StepClock(TrainerCallback):
    """Wall clock, CPU time and page faults of each optimizer step, from one step's end to the next one's.

    So a step includes its collation and whatever the library does between steps; the first one starts where
    the Trainer says that it begins.
    """

    def __init__(self) -> None:
        self.marks: list[dict[str, float]] = []
        self.matmul_precision = torch.get_float32_matmul_precision()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Mark where the first step begins."""
        if not self.marks:
            self.marks.append(_mark())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Mark where a step ends, and what float32 matrix products it ran with."""
        self.marks.append(_mark())
        self.matmul_precision = torch.get_float32_matmul_precision()

    def steps(self, name: str) -> list[float]:
        """`seconds`, `cpu_seconds` or `page_faults` of each step."""
        values = [mark[name] for mark in self.marks]
        return [after - before for before, after in itertools.pairwise(values)]


def _mark() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.perf_counter(),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "page_faults": usage.ru_minflt + usage.ru_majflt,
    }


def read_job() -> dict[str, Any]:
    """The job file that the parent names on the command line."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def training_options(job: dict[str, Any]) -> dict[str, Any]:
    """The options that both libraries get, under the names that both know.

    The peer turns bf16 and gradient checkpointing on by default; here both are as the job says, in both.
    """
    return {
        "output_dir": job["output_dir"],
        "max_steps": job["num_steps"],
        "per_device_train_batch_size": job["pairs"],
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": job["precision"] == "bfloat16",
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "max_length": job["max_length"],
        "beta": 0.1,
        "seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def load_models(job: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel, Any]:
    """Policy and reference in float32, and their tokenizer."""
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(job["reference"], dtype=torch.float32)
    return policy, reference, AutoTokenizer.from_pretrained(job["model"])


def record_inputs(trainer: Any) -> list[Any]:
    """The micro-batch of each step to come, as the library made it."""
    inputs: list[Any] = []
    training_step = trainer.training_step

    def recording_step(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        inputs.append(batch)
        return training_step(model, batch, *args, **kwargs)

    trainer.training_step = recording_step
    return inputs


def run(
    job: dict[str, Any],
    trainer: Any,
    *,
    library: str,
    rows_of: Callable[[Any], tuple[list[Row], list[Row]]],
    logps: dict[str, list[float]],
) -> None:
    """Train, and write the result that the job asks for.

    Args:
        job: as `read_job` gave it.
        trainer: ready to train, with nothing run yet.
        library: the distribution whose version is reported.
        rows_of: a micro-batch -> its chosen and its rejected rows.
        logps: filled during the first step: `logps/chosen`, `logps/rejected`, and the same of `ref_logps`.
    """
    clock, inputs = StepClock(), record_inputs(trainer)
    trainer.add_callback(clock)
    gc.collect()
    loaded = resident_memory("VmRSS")
    can_reset = reset_peak_memory()
    trainer.train()
    peak = resident_memory("VmHWM") if can_reset else None
    first = next(line for line in trainer.state.log_history if line["step"] == 1)
    result = {
        "library": library,
        "versions": versions(library),
        "threads": torch.get_num_threads(),
        "matmul_precision": clock.matmul_precision,
        "first_step": {"loss": first["loss"], "grad_norm": first["grad_norm"], **logps},
        "steps": [describe_rows(*rows_of(batch)) for batch in inputs],
        "seconds": clock.steps("seconds"),
        "cpu_seconds": clock.steps("cpu_seconds"),
        "page_faults": clock.steps("page_faults"),
        "loaded_bytes": loaded,
        "peak_bytes": peak,
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def versions(library: str) -> dict[str, str]:
    """The versions of Python, the library and what both arms share."""
    packages = {package: version(package) for package in (library, *COMMON_PACKAGES)}
    return {"python": platform.python_version(), **packages}


def describe_rows(chosen: Sequence[Row], rejected: Sequence[Row]) -> dict[str, Any]:
    """A step's tokens: a digest of which are there and which are trained, and how many are useful.

    Useful tokens are those that the loss depends on, each once: the prompt of a pair, and both answers.
    """
    pairs = list(zip(chosen, rejected, strict=True))
    content = [[row.ids, [int(t) for t in row.trained]] for pair in pairs for row in pair]
    useful = sum(len(a.ids) + len(b.ids) - min(a.num_prompt, b.num_prompt) for a, b in pairs)
    return {
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
        "useful_tokens": useful,
        "trained_tokens": sum(sum(row.trained) for pair in pairs for row in pair),
    }


def reset_peak_memory() -> bool:
    """Forget the peak that loading left behind; False where the system cannot (anything but Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def resident_memory(field: str) -> int | None:
    """`VmRSS` or `VmHWM` of this process in bytes, or None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
