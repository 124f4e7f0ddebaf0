"""Run by torchrun in `test_precompute`: compute the reference's log-probs on every rank, and write what each has."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "invariants"), str(Path(__file__).parents[1])]

import torch  # noqa: E402 - the paths come first
from training import make_trainer  # noqa: E402

from burnish.trainers.precompute import precompute  # noqa: E402
from ranks import finish  # noqa: E402


def main() -> None:
    """argv: output directory, JSON options."""
    torch.set_num_threads(1)
    output, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    dtype, rank = getattr(torch, options.pop("dtype")), os.environ.get("RANK", "0")
    if options.pop("own_cache", False):
        os.environ["BURNISH_CACHE"] = str(Path(os.environ["BURNISH_CACHE"], rank))
    trainer = make_trainer(output / "run", dtype=dtype, precompute_ref_log_probs=True, **options)
    computed: list[bool] = []
    own = trainer.tell
    trainer.tell = lambda kind, message, **fields: (
        computed.append(fields["computed"]) if kind == "reference" else own(kind, message, **fields)
    )
    train = precompute(trainer).train
    columns = {name: train[name][:] for name in train.column_names if name.startswith("ref_")}
    (output / f"rank_{rank}.json").write_text(json.dumps({"columns": columns, "computed": computed}))


if __name__ == "__main__":
    main()
    finish()
