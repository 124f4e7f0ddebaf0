"""How right the answers of saved weights are on the held-out prompts, whichever library trained them.

Runs in Burnish's environment: the evaluation of its GRPOTrainer, with the options of the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from measure import start_job, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer

from burnish import GRPOConfig, GRPOTrainer
from burnish.intervals import normal, wilson

SAMPLED, GREEDY = "eval_accuracy", "eval_accuracy_greedy"


def main() -> None:
    job = start_job()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    curve = {
        int(directory.name): accuracy(job, directory, tokenizer)
        for directory in sorted(Path(job["snapshots"]).iterdir())
    }
    write_result(job, {"curve": curve})


def accuracy(job: dict[str, Any], directory: Path, tokenizer: Any) -> dict[str, list[float]]:
    """Share of right answers, sampled and greedy: each the mean and its 95 % interval."""
    options = {**job["training"], "output_dir": job["output_dir"], "save_strategy": "no", "use_cpu": True}
    options |= {"report_to": "none", "disable_tqdm": True, "seed": job["eval_seed"]}
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32),
        job["rewards"],
        GRPOConfig(**options),
        train_dataset=job["train_rows"],
        eval_dataset=job["eval_rows"],
        processing_class=tokenizer,
    )
    trainer.evaluate()
    sampled, greedy = trainer.estimates[SAMPLED], trainer.estimates[GREEDY]
    intervals = normal(sampled.mean, sampled.standard_error), wilson(greedy.mean, greedy.weight)
    return {
        name: [estimate.mean, interval.low, interval.high]
        for name, estimate, interval in zip(("sampled", "greedy"), (sampled, greedy), intervals, strict=True)
    }


if __name__ == "__main__":
    main()
