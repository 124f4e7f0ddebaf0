"""Scripts on several processes: how tests start them, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

HERE = Path(__file__).parent
UNREPEATABLE = ("runtime", "per_second", "step_time", "epoch")  # parts of names


def launch(processes: int, script: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """A script on so many processes (gloo); on one without a launcher."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as logs:  # else the launcher leaves a directory of its own behind
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", f"--log-dir={logs}"]
        command = [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def train_on(
    processes: int, output: Path, maker: str, **options: Any
) -> tuple[list[torch.Tensor], list[dict[str, float]]]:
    """The gradient of each step, and the log lines without times, of a training on so many processes.

    Args:
        processes: how many.
        output: a directory that is not there yet.
        maker: module:function of a helper of the tests, (directory, **options) -> trainer.
        options: in JSON types; dtype by name.
    """
    output.mkdir()
    done = launch(processes, HERE / "gradient_ranks.py", output, maker, json.dumps(options))
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((output / "log.json").read_text())
    kept = [{k: v for k, v in line.items() if not any(word in k for word in UNREPEATABLE)} for line in log]
    return torch.load(output / "gradients.pt", weights_only=True), kept


def finish() -> NoReturn:
    """Leave together, and without the teardown of the interpreter.

    There a rank is now and then aborted by a C++ thread ("terminate called without an active exception"), after all of
    its work is done, which the launcher takes for a failure.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
