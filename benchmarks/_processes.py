"""The processes of a benchmark: an interpreter, a script, a job. Standard library only: neither torch nor a peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHECKOUT, ARMS = HERE.parent, HERE / "arms"
INHERITED_NOT = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHONPATH", "OMP_", "MKL_", "KMP_")
KILLED = -9


@dataclass(frozen=True)
class Environment:
    """A virtual environment of a peer, in a directory of the checkout."""

    directory: str
    requirements: str


TRL = Environment(".venv-trl", "trl-requirements.txt")
TRL_WITH_PPO = Environment(".venv-trl025", "trl025-requirements.txt")


@dataclass(frozen=True)
class Arm:
    """A library, the interpreter that has it, the script that runs it, and what its job has beside the common."""

    name: str
    python: str
    script: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


class ArmFailedError(RuntimeError):
    """A process of a benchmark ended with an error, or the system killed it for its memory."""


def peer_python(given: str | None, environment: Environment = TRL) -> str:
    """The interpreter that has TRL: the one that was given, or that of the environment, made now if it is not there."""
    return os.path.abspath(given) if given else _make_peer_environment(environment)


def _make_peer_environment(environment: Environment) -> str:
    directory, requirements = CHECKOUT / environment.directory, HERE / environment.requirements
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = directory / "requirements.txt"
    if ready.is_file() and ready.read_bytes() == requirements.read_bytes():
        return str(python)
    say(f"making {directory.name} with TRL (once; a few minutes) …")
    venv.create(directory, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
    subprocess.run(install, check=True)
    ready.write_bytes(requirements.read_bytes())
    return str(python)


def arm_environment(threads: int, folder: Path) -> dict[str, str]:
    """The environment variables of every arm: nothing that changes the allocator or the threads comes from outside."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED_NOT)}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return environment | {"DO_NOT_TRACK": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}


def run_prepare(script: str, job: Mapping[str, Any], folder: Path, *, threads: int) -> dict[str, Any]:
    """A job with what a child that has Burnish adds to it: model, rows, prompts. Only this one may load from a hub."""
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    environment = arm_environment(threads, folder)
    del environment["HF_HUB_OFFLINE"]
    _run([sys.executable, str(ARMS / script), str(path)], _with_source(environment), log=folder / "prepare.log")
    return json.loads(path.read_text(encoding="utf-8"))


def run_arm(arm: Arm, job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One process of one arm, from start to end; returns the result that it wrote.

    Raises:
        ArmFailedError: it ended with an error, whose last lines are the message.
    """
    with tempfile.TemporaryDirectory(prefix="arm-", dir=folder) as name:
        own = Path(name)
        paths = {"output_dir": str(own / "run"), "result": str(own / "result.json")}
        (own / "job.json").write_text(json.dumps({**job, **arm.options, **paths}), encoding="utf-8")
        environment = arm_environment(job["threads"], folder)
        if arm.python == sys.executable:
            environment = _with_source(environment)
        _run([arm.python, str(ARMS / arm.script), str(own / "job.json")], environment, log=own / "log.txt", cwd=own)
        return json.loads((own / "result.json").read_text(encoding="utf-8"))


def say(text: str) -> None:
    """Progress, on the error stream: the output is the result."""
    print(text, file=sys.stderr, flush=True)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _with_source(environment: dict[str, str]) -> dict[str, str]:
    """The Burnish of this checkout is measured, whatever is installed."""
    return {**environment, "PYTHONPATH": str(CHECKOUT / "src")}


def _run(command: list[str], environment: dict[str, str], *, log: Path, cwd: Path | None = None) -> None:
    with log.open("wb") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=cwd, check=False)
    if code.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
        why = "was killed: out of memory?" if code.returncode == KILLED else f"ended with code {code.returncode}"
        raise ArmFailedError("\n".join([*tail, f"{Path(command[1]).name} {why}"]))
