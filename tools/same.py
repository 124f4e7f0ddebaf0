"""Whether a change changes nothing: 20 steps of DPO now and at another revision; losses and gradient norms, bit by bit.

    python tools/same.py [REVISION]      (HEAD if left out)

Each side runs in a process of its own, on the same interpreter and packages, the other revision in a work tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import sys, tempfile
sys.path[:0] = [{tests!r}, {invariants!r}]
import torch
from conftest import make_rows
from training import make_trainer
with tempfile.TemporaryDirectory() as directory:
    trainer = make_trainer(directory, dtype=torch.float32, rows=make_rows(24), per_device_train_batch_size=2,
        gradient_accumulation_steps=2, max_steps=20, loss_type=["sigmoid", "aot", "sft"])
    trainer.train()
    for line in trainer.state.log_history:
        if "grad_norm" in line:
            print("STEP", line["step"], float(line["loss"]).hex(), float(line["grad_norm"]).hex())
"""


def steps_of(tree: Path) -> list[str]:
    """The loss and gradient norm of each step, as exact hexadecimal numbers."""
    # The scenario is this revision's, the library that of `tree`.
    tests = ROOT / "tests"
    code = RUN.format(tests=str(tests), invariants=str(tests / "invariants"))
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, cwd=tree
    )
    if done.returncode:
        raise SystemExit(f"the run in {tree} failed:\n{done.stderr[-2000:]}")
    return [line for line in done.stdout.splitlines() if line.startswith("STEP")]


def main() -> None:
    """Compare, print the first difference, and exit with 1 if there is one."""
    revision = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "other"
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), revision], cwd=ROOT, check=True)
        try:
            other = steps_of(tree)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    mine = steps_of(ROOT)
    if mine == other and len(mine) == 20:
        print(f"same: 20 steps are bit-identical to {revision}")
        return
    for now, then in zip(mine, other, strict=False):
        if now != then:
            print(f"different from {revision}:\n  now  {now}\n  then {then}")
            break
    raise SystemExit(1)


if __name__ == "__main__":
    main()
