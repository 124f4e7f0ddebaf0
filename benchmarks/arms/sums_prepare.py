"""The inputs of a full run of `recipe:grpo` in both libraries: its options, its prompts, the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inputs import prepare

from burnish.cli.runfile import load_runfile
from burnish.data.sources import load_rows

RECIPE = "recipe:grpo"


def inputs(job: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    del folder, tokenizer
    recipe = load_runfile(RECIPE)
    return {
        "training": dict(recipe.training),
        "train_rows": list(load_rows(recipe.train)),
        "eval_rows": list(load_rows(recipe.eval))[: job["eval_rows"]],
        "rewards": list(recipe.rewards),
    }


if __name__ == "__main__":
    prepare(inputs)
