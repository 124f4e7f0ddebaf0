"""What every arm records, so that neither library is measured by its own clock.

It runs in two environments, Burnish's and the peer's, so it imports the standard library, torch and transformers.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from step_profile import StepProfiler
from transformers import TrainerCallback

COMMON_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "numpy")
CHECKOUT = Path(__file__).resolve().parents[2]


def start_job() -> dict[str, Any]:
    """The job file that the parent names on the command line, its threads and settings in force.

    A job that is `tuned` gets what Burnish's `runtime/cpu.py` sets on this machine, in whatever library it runs.
    """
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with suppress(OSError):  # should memory run out, this process goes, and no other
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    torch.set_num_threads(job["threads"])
    if job.get("tuned"):
        import_burnish()
        from burnish.runtime import cpu

        cpu.apply(cpu.probe())
    return job


def import_burnish() -> None:
    """Make single modules of this checkout importable in the peer's environment, after everything that is installed."""
    sys.path.append(str(CHECKOUT / "src"))


class StepClock(TrainerCallback):
    """Wall clock, CPU time and page faults of each optimizer step, from one step's end to the next one's.

    So a step includes its collation, its rollout and whatever the library does between steps; the first one starts
    with the first epoch, before its rollout. The peak of memory counts from there too.
    """

    def __init__(self) -> None:
        self.starts: list[dict[str, float]] = []
        self.ends: list[dict[str, float]] = []
        self.matmul_precision = torch.get_float32_matmul_precision()
        self.has_peak = False

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Mark where the first step begins."""
        if not self.starts:
            self.has_peak = reset_peak_memory()
            self.starts.append(_mark())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Mark where a step ends and the next one begins, and what float32 matrix products it ran with."""
        self.ends.append(_mark())
        self.starts.append(self.ends[-1])
        self.matmul_precision = torch.get_float32_matmul_precision()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside, between two steps, belongs to none of them."""
        yield
        self.starts[-1] = _mark()

    def steps(self, name: str) -> list[float]:
        """`seconds`, `cpu_seconds` or `page_faults` of each step."""
        return [end[name] - start[name] for start, end in zip(self.starts, self.ends, strict=False)]


def _mark() -> dict[str, float]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.perf_counter(),
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "page_faults": usage.ru_minflt + usage.ru_majflt,
    }


def common_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Options of every trainer in both libraries, under the names that both know.

    The peer turns bf16 and gradient checkpointing on by default; here both are as the job says, and the latter is off
    unless an arm asks for it.
    """
    return {
        "output_dir": job["output_dir"],
        "max_steps": job["num_steps"],
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "bf16": job["precision"] == "bfloat16",
        "gradient_checkpointing": job.get("gradient_checkpointing", False),
        "disable_dropout": True,
        "seed": job["seed"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def train(
    job: Mapping[str, Any],
    trainer: Any,
    *,
    library: str,
    loaded: int | None,
    clock: StepClock,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train, and say how long each step took and how much memory there was at most.

    Args:
        job: as `start_job` gave it.
        trainer: ready to train, with nothing run yet.
        library: the distribution whose version is reported.
        loaded: resident memory with nothing but the models in it, from `loaded_bytes`.
        clock: not used yet.
        callbacks: further ones; what they do at a step's end comes after it.
    """
    profiler = StepProfiler() if job.get("profile") else None
    for callback in (clock, *([profiler] if profiler else []), *callbacks):
        trainer.add_callback(callback)
    gc.collect()
    trainer.train()
    return {
        "library": library,
        "versions": versions(library),
        "threads": torch.get_num_threads(),
        "tuned": bool(job.get("tuned")),
        "matmul_precision": clock.matmul_precision,
        **{name: clock.steps(name) for name in ("seconds", "cpu_seconds", "page_faults")},
        "loaded_bytes": loaded,
        "peak_bytes": resident_memory("VmHWM") if clock.has_peak else None,
        "profile": profiler.rows if profiler else [],
    }


def first_log_line(trainer: Any) -> dict[str, float]:
    """What a trainer logged of its first step."""
    return next(line for line in trainer.state.log_history if line["step"] == 1 and "loss" in line)


def write_result(job: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Where the parent looks for it."""
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def versions(library: str) -> dict[str, str]:
    """The versions of Python, the library and what both arms share."""
    packages = {package: version(package) for package in (library, *COMMON_PACKAGES)}
    return {"python": platform.python_version(), **packages}


def loaded_bytes(*models: torch.nn.Module) -> int | None:
    """Resident memory with the models in it: every weight read once, what loading left behind given back."""
    gc.collect()
    for tensor in itertools.chain.from_iterable((*model.parameters(), *model.buffers()) for model in models):
        tensor.detach().sum()
    give_memory_back()
    return resident_memory("VmRSS")


def give_memory_back() -> None:
    """Free memory that the allocator holds goes back to the system, where it is glibc's."""
    with suppress(OSError, ValueError, AttributeError):
        if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory() -> bool:
    """Forget the peak that there was so far; False where the system cannot (anything but Linux)."""
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
