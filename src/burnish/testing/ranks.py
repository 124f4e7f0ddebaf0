"""Each process of a trial on several: `python -m burnish.testing.ranks DIRECTORY` trains one step of trial.json."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from burnish.runtime.distributed import sum_over_ranks
from burnish.runtime.functions import import_named
from burnish.testing.processes import NAME
from burnish.testing.trials import Trial, step_gradients


def main(place: Path) -> None:
    """Of each process: train one step, and write the gradient on the first one."""
    described = json.loads((place / "trial.json").read_text(encoding="utf-8"))

    def get(name: str) -> Any:
        return None if described[name] is None else import_named(described[name], option=name)

    options = {
        name: import_named(value["import"], option=name) if isinstance(value, dict) and "import" in value else value
        for name, value in described["options"].items()
    }
    rewards = [import_named(r, option="reward_funcs") if ":" in r else r for r in described["reward_funcs"]]
    trial = Trial(
        trainer=get("trainer"),
        make_rows=get("make_rows"),
        make_model=get("make_model"),
        make_keywords=get("make_keywords"),
        reward_funcs=rewards if len(rewards) > 1 else rewards[0],
        options=options,
        directory=place,
    )
    case = trial.case(described["num_rows"])
    trainer: Any = trial.make(case, processes=described["processes"], output_dir=place / "run")
    gradient = step_gradients(trainer)[0]
    if trainer.is_world_process_zero():
        save_file({NAME: gradient.cpu()}, place / f"{NAME}.safetensors")
    sum_over_ranks(torch.zeros(1))  # leave together
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the interpreter's own end now and then aborts a rank, after all of its work is done


if __name__ == "__main__":
    main(Path(sys.argv[1]))
