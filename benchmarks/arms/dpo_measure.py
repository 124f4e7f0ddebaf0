"""What both DPO arms record: the tokens of every step, the log-probs of the first one, and how long a step takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measure import StepClock, common_options, first_log_line, loaded_bytes, start_job, train, write_result
from transformers import AutoModelForCausalLM, AutoTokenizer

SIDES = ("chosen", "rejected")
Logps = dict[str, list[float]]


@dataclass(frozen=True)
class Row:
    """One trained sequence: prompt and answer without padding, and which of its tokens are trained."""

    ids: list[int]
    trained: list[bool]

    @property
    def num_prompt(self) -> int:
        """Tokens before the first trained one."""
        return self.trained.index(True)


@dataclass(frozen=True)
class Inputs:
    """What an arm makes its trainer of: policy and reference in float32, their tokenizer, and the common options."""

    policy: Any
    reference: Any
    tokenizer: Any
    options: dict[str, Any]


def run(
    *,
    library: str,
    make_trainer: Callable[[dict[str, Any], Inputs], Any],
    record_logps: Callable[[Any, Logps], None],
    rows_of: Callable[[Any], tuple[list[Row], list[Row]]],
) -> None:
    """Train the job that the command line names, and write its result.

    Args:
        library: the distribution whose version is reported.
        make_trainer: job, inputs -> a trainer with nothing run yet.
        record_logps: a trainer -> writes `logps/…` and `ref_logps/…` of its first step when that comes.
        rows_of: a micro-batch -> its chosen and its rejected rows.
    """
    job = start_job()
    policy = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(job["reference_model"], dtype=torch.float32)
    loaded = loaded_bytes(policy, reference)
    inputs = Inputs(policy, reference, AutoTokenizer.from_pretrained(job["model"]), training_options(job))
    trainer = make_trainer(job, inputs)
    batches, logps, clock = record_batches(trainer), Logps(), StepClock()
    record_logps(trainer, logps)
    result = train(job, trainer, library=library, loaded=loaded, clock=clock)
    first = first_log_line(trainer)
    result["first_step"] = {"loss": first["loss"], "grad_norm": first["grad_norm"], **logps}
    result["steps"] = [describe_rows(*rows_of(batch)) for batch in batches]
    write_result(job, result)


def training_options(job: dict[str, Any]) -> dict[str, Any]:
    """The options that both libraries get, under the names that both know."""
    return {
        **common_options(job),
        "per_device_train_batch_size": job["pairs"],
        "max_length": job["max_length"],
        "beta": 0.1,
        "precompute_ref_log_probs": job["reference"] == "cached",
    }


def record_batches(trainer: Any) -> list[Any]:
    """The micro-batch of each step to come, as the library made it."""
    batches: list[Any] = []
    training_step = trainer.training_step

    def recording_step(model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(batch)
        return training_step(model, batch, *args, **kwargs)

    trainer.training_step = recording_step
    return batches


def describe_rows(chosen: Sequence[Row], rejected: Sequence[Row]) -> dict[str, Any]:
    """A step's tokens: a digest of which are there and which are trained, and how many are useful.

    Useful tokens are those that the loss depends on, each once: the prompt of a pair, and both answers.
    """
    pairs = list(zip(chosen, rejected, strict=True))
    content = [[row.ids, [int(t) for t in row.trained]] for pair in pairs for row in pair]
    return {
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
        "useful_tokens": sum(len(a.ids) + len(b.ids) - min(a.num_prompt, b.num_prompt) for a, b in pairs),
        "trained_tokens": sum(sum(row.trained) for pair in pairs for row in pair),
    }
