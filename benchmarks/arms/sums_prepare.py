"""The inputs of a full run of `recipe:grpo` in both libraries: its options, its prompts, the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inputs import prepare, read_rows

from burnish.cli.runfile import load_runfile

RECIPE = "recipe:grpo"


def inputs(job: dict[str, Any], folder: Path, tokenizer: Any) -> dict[str, Any]:
    del folder, tokenizer
    recipe = load_runfile(RECIPE)
    return {
        "training": dict(recipe.training),
        "train_rows": read_rows(recipe.train),
        "eval_rows": read_rows(recipe.eval)[: job["eval_rows"]],
        "rewards": list(recipe.rewards),
    }


if __name__ == "__main__":
    prepare(inputs)
