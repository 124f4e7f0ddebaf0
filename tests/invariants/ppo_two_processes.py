"""Run by torchrun in `test_ppo_exactness`: PPO on every rank, and gradients and metrics of rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402 - the paths come first
from ppo_training import make_ppo_trainer  # noqa: E402
from training import step_gradients  # noqa: E402

from ranks import finish  # noqa: E402


def main() -> None:
    """argv: output directory, JSON options."""
    output, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    trainer = make_ppo_trainer(output / "run", use_cpu=True, **options)
    gradients = step_gradients(trainer)
    if trainer.is_world_process_zero():
        torch.save(gradients, output / "gradients.pt")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
    finish()
