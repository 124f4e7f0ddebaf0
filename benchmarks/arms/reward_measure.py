"""What both reward arms record: the tokens of every step, the scores of the first one, and how long a step takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from dpo_measure import record_batches
from measure import StepClock, common_options, first_log_line, loaded_bytes, start_job, train, write_result
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Row = list[int]  # the tokens of a prompt and an answer


def run(
    *,
    library: str,
    make_trainer: Callable[[dict[str, Any], Any, Any], Any],
    rows_of: Callable[[Any], tuple[list[Row], list[Row]]],
) -> None:
    """Train the job that the command line names, and write its result.

    Args:
        library: the distribution whose version is reported.
        make_trainer: job, classifier in float32, tokenizer -> a trainer with nothing run yet.
        rows_of: a micro-batch -> its chosen and its rejected rows.
    """
    job = start_job()
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32)
    loaded = loaded_bytes(model)
    trainer = make_trainer(job, model, AutoTokenizer.from_pretrained(job["tokenizer"], pad_token=job["pad_token"]))
    batches = record_batches(trainer)
    result = train(job, trainer, library=library, loaded=loaded, clock=StepClock())
    result["first_step"] = compared(first_log_line(trainer))
    result["steps"] = [describe_rows(*rows_of(batch)) for batch in batches]
    write_result(job, result)


def training_options(job: dict[str, Any]) -> dict[str, Any]:
    """The options that both libraries get, under the names that both know."""
    own = {"per_device_train_batch_size": job["pairs"], "max_length": job["max_length"]}
    return {**common_options(job), **own}


def compared(line: Mapping[str, Any]) -> dict[str, Any]:
    """What the first line of the log says, with both means that a margin is the difference of: any may be next to 0."""
    logged = {name: float(line[name]) for name in ("loss", "accuracy", "grad_norm")}
    middle, half = float(line["mean_reward"]), float(line["margin"]) / 2
    return {**logged, "scores/means": [middle + half, middle - half]}


def describe_rows(chosen: Sequence[Row], rejected: Sequence[Row]) -> dict[str, Any]:
    """A step's tokens: a digest of them, and how many are useful: what the rows of a pair begin with counts once."""
    pairs = list(zip(chosen, rejected, strict=True))
    return {
        "digest": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16],
        "useful_tokens": sum(len(a) + len(b) - num_shared(a, b) for a, b in pairs),
    }


def num_shared(row: Row, other: Row) -> int:
    """Tokens that two rows begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(row, other, strict=False))))
