"""Run by torchrun in `test_answering`: train on every rank, and write the win rate of rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402 - the paths come first
from test_answering import longer, make_trainer  # noqa: E402

from burnish.runtime.distributed import barrier  # noqa: E402
from conftest import make_model  # noqa: E402
from ranks import finish  # noqa: E402


def main() -> None:
    """argv: output directory, pairs of a micro-batch, prompts to answer."""
    output, size, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    trainer = make_trainer(
        output / "run",
        model=make_model(0, torch.float64),
        ref_model=make_model(3, torch.float64),
        judge=longer,
        per_device_train_batch_size=size,
        num_eval_samples=count,
        use_cpu=True,
    )
    trainer.train()
    if trainer.is_world_process_zero():
        names = ("eval_win_rate", "eval_win_rate/low", "eval_completions/mean_length", "eval_completions/clipped_ratio")
        metrics = [{name: line[name] for name in names} for line in trainer.state.log_history if names[0] in line]
        (output / "metrics.json").write_text(json.dumps(metrics[-1]))
    barrier()  # a rank that leaves while the other is still at work can take its connection along
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
    finish()
