"""Run by torchrun in `test_dpo_images`: train on every rank, and write the losses of rank 0."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402 - the paths come first
from test_dpo_images import image_rows, make_trainer, train_losses  # noqa: E402

from ranks import finish  # noqa: E402


def main() -> None:
    """argv: output directory, family, pairs of a micro-batch."""
    output, family, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    options = {"per_device_train_batch_size": size, "gradient_checkpointing": True, "use_cpu": True, "seed": 3}
    trainer = make_trainer(output / "run", family, image_rows(), dtype=torch.float64, **options)
    trainer.train()
    if trainer.is_world_process_zero():
        (output / "losses.json").write_text(json.dumps(train_losses(trainer)))


if __name__ == "__main__":
    main()
    finish()
