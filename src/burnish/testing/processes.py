"""A trial on several processes: described in JSON for `burnish.testing.ranks`, its gradient read from a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from burnish.testing.trials import Case, Trial

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = 300
NAME = "gradient"


def gradient_of_processes(trial: Trial, case: Case) -> Tensor:
    """The gradient of the case's step on `trial.processes` processes (gloo), as its first one has it.

    Raises:
        ValueError: what the trial is made of cannot be imported in another process.
        RuntimeError: the processes failed; the message has the end of what they wrote.
    """
    place = Path(tempfile.mkdtemp(dir=trial.directory))
    described = {
        "trainer": named(trial.trainer, "the trainer"),
        "make_rows": named(trial.make_rows, "make_rows"),
        "make_model": named(trial.make_model, "make_model"),
        "make_keywords": None if trial.make_keywords is None else named(trial.make_keywords, "make_keywords"),
        "reward_funcs": _rewards(trial.reward_funcs),
        "options": _plain(trial.options),
        "num_rows": len(case.rows),
        "processes": trial.processes,
    }
    (place / "trial.json").write_text(json.dumps(described), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--log-dir={place}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [*launcher, f"--nproc_per_node={trial.processes}", "-m", "burnish.testing.ranks", str(place)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{trial.processes} processes ended with {done.returncode}: …{done.stderr[-1500:]}")
    return load_file(place / f"{NAME}.safetensors")[NAME]


def named(item: Any, what: str) -> str:
    """An item as `module:name`, by which another process can import it.

    Raises:
        ValueError: it is defined in a script or in a function.
    """
    module, name = item.__module__, item.__qualname__
    if module == "__main__" or "<" in name or "." in name:
        raise ValueError(
            f"{what} is {module}.{name}, which another process cannot import: define it at the top of a module that is "
            "no script, or leave this law out with processes=1"
        )
    return f"{module}:{name}"


def _rewards(given: Any) -> list[str]:
    rewards = given if isinstance(given, list) else [given]
    return [reward if isinstance(reward, str) else named(reward, "the reward function") for reward in rewards]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON; functions by their name."""
    return {name: {"import": named(v, name)} if callable(v) else v for name, v in options.items()}
