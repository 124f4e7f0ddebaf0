"""The CPU's settings: probed once at the start of a run, reported, saved, and replayed when the run resumes.

They decide the last bits of every matrix product, so a resumed run takes them from its checkpoint
and not from a second measurement.
"""

from __future__ import annotations

import ctypes
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

import torch

Precision = Literal["highest", "high", "medium"]
PRECISIONS: tuple[Precision, ...] = ("highest", "high", "medium")

_MIN_SPEEDUP = 1.2
_MAX_ERROR = 2e-5
_SHAPE = (512, 576, 1536)
_REPEATS = 7
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MMAP_THRESHOLD = 1 << 30
_NEVER = -1  # a step may free more than the largest threshold that fits an int, 2 GB
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


@dataclass(frozen=True, kw_only=True)
class CpuSettings:
    """What a run sets on the CPU.

    Attributes:
        num_threads: threads of one torch operation.
        matmul_precision: of float32 matrix products; "medium" is chosen only where it is float32-accurate.
        malloc_tuned: freed memory stays in the process, so that a step does not fault its pages in again.
    """

    num_threads: int
    matmul_precision: Precision
    malloc_tuned: bool

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CpuSettings:
        """The settings that `as_dict` wrote.

        Raises:
            ValueError: a field is missing, unknown, or has a value that is not allowed.
        """
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            raise ValueError(f"CPU settings have the fields {sorted(values)}; they need exactly {sorted(names)}.")
        threads, precision, tuned = (values[field.name] for field in fields(cls))
        if type(threads) is not int or threads < 1:
            raise ValueError(f"CPU settings: num_threads={threads!r}; allowed: an integer of 1 or more.")
        if precision not in PRECISIONS:
            raise ValueError(f"CPU settings: matmul_precision={precision!r}; allowed: {', '.join(PRECISIONS)}.")
        if type(tuned) is not bool:
            raise ValueError(f"CPU settings: malloc_tuned={tuned!r}; allowed: True or False.")
        return cls(num_threads=threads, matmul_precision=precision, malloc_tuned=tuned)

    def lines(self) -> list[str]:
        """Each setting as a sentence for the console and the report."""
        faster = "a faster kernel that was float32-accurate here" if self.matmul_precision == "medium" else "exact"
        memory = (
            "Freed memory stays in the process (malloc thresholds raised), so it looks larger from outside."
            if self.malloc_tuned
            else "The memory allocator is as the system set it."
        )
        return [
            f"Each operation uses {self.num_threads} CPU threads.",
            f"Float32 matrix products run at precision '{self.matmul_precision}' ({faster}).",
            memory,
        ]


def probe() -> CpuSettings:
    """Measure what this machine's CPU does best; changes no setting and no random generator.

    The precision is measured once a process and number of threads: every run of the process takes the same.
    With an accelerator the precision stays as it is, since it would apply to the accelerator too.
    """
    precision = cast("Precision", torch.get_float32_matmul_precision())
    if not torch.accelerator.is_available() and precision == "highest" and _medium_pays_with(torch.get_num_threads()):
        precision = "medium"
    return CpuSettings(num_threads=torch.get_num_threads(), matmul_precision=precision, malloc_tuned=_may_tune_malloc())


def apply(settings: CpuSettings) -> CpuSettings:
    """Set threads, precision and allocator; returns what is really in force afterwards.

    The allocator's thresholds are the process's: they are raised, never lowered again.
    """
    torch.set_num_threads(settings.num_threads)
    torch.set_float32_matmul_precision(settings.matmul_precision)
    return CpuSettings(
        num_threads=torch.get_num_threads(),
        matmul_precision=cast("Precision", torch.get_float32_matmul_precision()),
        malloc_tuned=settings.malloc_tuned and _may_tune_malloc() and _tune_malloc(),
    )


def bfloat16_speedup() -> float:
    """How many times faster a matrix product is in bfloat16 than in float32, at the settings in force."""
    left, right = _operands()
    products = {"float32": (left, right), "bfloat16": (left.bfloat16(), right.bfloat16())}
    seconds = {name: list[float]() for name in products}
    for _ in range(_REPEATS):
        for name, (one, other) in products.items():
            seconds[name].append(_seconds(lambda one=one, other=other: one @ other))
    return statistics.median(seconds["float32"]) / statistics.median(seconds["bfloat16"])


@functools.cache
def _medium_pays_with(num_threads: int) -> bool:
    """Whether "medium" pays in torch's own product at the number of threads that is in force."""
    return _medium_pays(torch.matmul)


def _medium_pays(multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> bool:
    left, right = _operands()
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    seconds: dict[str, list[float]] = {"highest": [], "medium": []}
    try:
        for _ in range(_REPEATS):  # alternating, so that other load on the machine hits both alike
            for precision, times in seconds.items():
                torch.set_float32_matmul_precision(precision)
                times.append(_seconds(lambda: multiply(left, right)))
        torch.set_float32_matmul_precision("medium")
        error = float((multiply(left, right).double() - exact).abs().max() / exact.abs().max())
    finally:
        torch.set_float32_matmul_precision(before)
    speedup = statistics.median(seconds["highest"]) / statistics.median(seconds["medium"])
    return speedup >= _MIN_SPEEDUP and error < _MAX_ERROR


def _operands() -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices of the sizes of a small model's layer."""
    rows, inner, columns = _SHAPE
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _may_tune_malloc() -> bool:
    """Whether the allocator is glibc's and nobody has set it already."""
    if any(name in os.environ for name in _MALLOC_VARIABLES) or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError, AttributeError):  # not a name on this system
        return False


def _tune_malloc() -> bool:
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    # glibc before 2.35 accepts at most 32 MB, which a gradient exceeds: then no block is mapped by itself.
    raised = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD) or mallopt(_M_MMAP_MAX, 0)
    return bool(raised and mallopt(_M_TRIM_THRESHOLD, _NEVER))
