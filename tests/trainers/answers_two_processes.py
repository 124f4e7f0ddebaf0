"""Run by torchrun in `test_answers_two_processes`: train on every rank, and write gradients and metrics of rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), *(str(Path(__file__).parents[1] / name) for name in ("", "invariants"))]

import torch  # noqa: E402 - the paths come first
from answer_training import make_trainer  # noqa: E402
from training import step_gradients  # noqa: E402

from ranks import finish  # noqa: E402


def main() -> None:
    """argv: method, output directory, JSON options."""
    output, options = Path(sys.argv[2]), json.loads(sys.argv[3])
    trainer = make_trainer(sys.argv[1], output / "run", use_cpu=True, **options)
    gradients = step_gradients(trainer)
    trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(gradients, output / "gradients.pt")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
    finish()
