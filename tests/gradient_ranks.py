"""Run by `ranks.train_on`: make a trainer on every rank, train and evaluate, and write what rank 0 has of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS / name) for name in ("", "invariants", "trainers")]

import torch  # noqa: E402 - the paths come first

from burnish.testing.trials import step_gradients  # noqa: E402
from ranks import finish  # noqa: E402


def main() -> None:
    """argv: output directory; module:function, (directory, **options) -> trainer; JSON options."""
    output, options = Path(sys.argv[1]), json.loads(sys.argv[3])
    module, _, name = sys.argv[2].partition(":")
    if "dtype" in options:
        options["dtype"] = getattr(torch, options["dtype"])
    trainer = getattr(importlib.import_module(module), name)(output / "run", **options)
    gradients = step_gradients(trainer)
    trainer.evaluate(trainer.train_dataset if trainer.eval_dataset is None else trainer.eval_dataset)
    if trainer.is_world_process_zero():
        torch.save(gradients, output / "gradients.pt")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
    finish()
