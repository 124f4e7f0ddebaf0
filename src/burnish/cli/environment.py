"""Versions and machine, as text to paste into an issue."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "burnish",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "peft",
    "trl",
    "vllm",
)
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
DEVICE_FILES = ("/dev/nvidia0", "/dev/kfd", "/dev/dri/renderD128")
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_HOME", "BURNISH_CACHE", "WORLD_SIZE")


def environment_lines() -> list[str]:
    """One line for each fact. Imports torch only if it was built for more than a CPU."""
    versions = {name: _version(name) for name in PACKAGES}
    shown = {name: value for name, value in versions.items() if value is not None}
    memory = memory_bytes()
    return [
        *(f"{name}: {value}" for name, value in shown.items()),
        f"not installed: {', '.join(name for name in PACKAGES if name not in shown) or 'none'}",
        f"python: {platform.python_version()} ({sys.executable})",
        f"platform: {platform.platform()}",
        f"cpu: {_cpu_model()}, {os.cpu_count()} threads",
        f"memory: {'unknown' if memory is None else f'{memory / 2**30:.1f} GiB'}",
        f"accelerators: {', '.join(_accelerators(versions['torch'])) or 'none'}",
        *(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ),
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _accelerators(torch_version: str | None) -> list[str]:
    if torch_version is None or torch_version.endswith("+cpu"):
        return []
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [str(torch.accelerator.current_accelerator())] if torch.accelerator.is_available() else []


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def memory_bytes() -> int | None:
    """The memory of the machine, or of the container if it has less; None if the system does not say."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not a name on this system
        return None
    try:
        limit = int(CONTAINER_LIMIT.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or "max"
        return machine
    return min(machine, limit)


def has_accelerator() -> bool:
    """Whether this machine may have one that the installed torch can use; torch is not imported."""
    built_for = _version("torch")
    return built_for is not None and not built_for.endswith("+cpu") and any(map(os.path.exists, DEVICE_FILES))
