"""What a run shows of its model before and after training: answers to a few prompts, or the scores of a few rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from burnish.cli.answers import sample_prompts
from burnish.data.errors import BadRowsError
from burnish.report.console import Answer
from burnish.trainers.rows import prepare_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from burnish.trainers.reward import RewardTrainer
    from burnish.types import PreferenceBatch


@dataclass(frozen=True)
class Samples:
    """Prompts, and what the model makes of them.

    Attributes:
        doing: what happens to them, for the console.
        shown: each prompt as it is shown.
        answer: the answers to all of them, by the model as it is now.
    """

    doing: str
    shown: Sequence[str]
    answer: Callable[[], list[Answer]]


def scored_samples(trainer: RewardTrainer, rows: Dataset, num_rows: int) -> Samples:
    """Rows spread evenly over a data set, whose answers a reward model scores. Bad rows are left out."""
    doing, count = "scoring the sample rows", min(num_rows, len(rows))
    if count == 0:
        return Samples(doing, (), list)
    chosen = rows.select([index * len(rows) // count for index in range(count)])
    options = {"end_token_ids": trainer.end_token_ids, "name": "samples", "on_bad_row": "drop"}
    try:
        prepared, report = prepare_rows(chosen, trainer.processing_class, trainer.args, **options)
    except BadRowsError:  # every one of them
        return Samples(doing, (), list)
    bad = {row.row for row in report.bad_rows}
    good = chosen.select([place for place in range(count) if place not in bad])
    prompts = sample_prompts(good, trainer.processing_class, len(good))
    batch: PreferenceBatch = trainer.data_collator(list(prepared))
    return Samples(doing, [prompt.shown for prompt in prompts], partial(_scored, trainer, batch))


@torch.no_grad()
def _scored(trainer: RewardTrainer, batch: PreferenceBatch) -> list[Answer]:
    """The answers of each prompt with their scores, in the order of the row: of a pair, chosen first."""
    model = trainer.model
    was_training = model.training
    model.eval()
    with trainer.accelerator.autocast():
        scores = trainer.score(model, batch.to(model.device)).scores.tolist()
    model.train(was_training)
    lines: list[list[str]] = [[] for _ in batch.prompt_ids]
    for row, score in enumerate(scores):
        text = _text(trainer, batch.completion_ids[row][batch.completion_mask[row]])
        lines[int(batch.prompt_index[row])].append(f"{score:+.2f}  {text}")
    return [Answer("\n".join(of_prompt), is_cut=False) for of_prompt in lines]


def _text(trainer: RewardTrainer, ids: torch.Tensor) -> str:
    return " ".join(str(trainer.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).split())
