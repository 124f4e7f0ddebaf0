"""Run by torchrun in `test_online_exactness`: GRPO on every rank, and gradients, metrics and events of rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402 - the paths come first
from online_training import make_online_trainer, make_prompts, some_flat  # noqa: E402
from training import step_gradients  # noqa: E402

from ranks import finish  # noqa: E402


def main() -> None:
    """argv: output directory, JSON options."""
    output, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    if options.pop("some_flat", False):
        options["reward_funcs"] = some_flat
    trainer = make_online_trainer(
        output / "run", use_cpu=True, rows=make_prompts(16), eval_dataset=make_prompts(5), **options
    )
    gradients = step_gradients(trainer)
    trainer.evaluate()
    if trainer.is_world_process_zero():
        torch.save(gradients, output / "gradients.pt")
        (output / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
    finish()
