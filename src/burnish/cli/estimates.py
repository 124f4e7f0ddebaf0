"""What a run will take, in memory and on disk, estimated from its run file and the headers of its model."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.cli.environment import has_accelerator, memory_bytes
from burnish.cli.methods import method_of
from burnish.cli.rollout_rules import round_of
from burnish.cli.validate import training_schema
from burnish.data.check import RowCheck
from burnish.models.footprint import (
    BYTES_OF,
    DEFAULT_BYTES,
    DEFAULT_STATES,
    OPTIMIZER_STATES,
    Training,
    checkpoint_bytes,
    memory_parts,
    token_budget,
    tokens_of_part,
)
from burnish.models.size import ModelShape, ModelSize
from burnish.rollout.plan import RoundPlan

LENGTH_IF_UNKNOWN = 1024
LESS_MEMORY = (
    "set a lower token_budget, which cuts a step into smaller parts, lower max_length, or set gradient_checkpointing "
    "or precompute_ref_log_probs"
)
LESS_MEMORY_OF_ROUNDS = (
    "set a lower token_budget, which cuts a step into smaller parts, lower max_completion_length, max_prompt_length or "
    "generation_max_rows, or set gradient_checkpointing"
)
LESS_DISK = "set save_total_limit, a longer save_steps or save_only_model, or an output_dir on another disk"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each part of a run on the longest rows, as many as are trained on at a time, and the machine's."""

    parts: Mapping[str, int]
    num_tokens: int
    row_tokens: int
    available: int | None

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def is_too_much(self) -> bool:
        """The machine is known to have less."""
        return self.available is not None and self.total > self.available

    @property
    def line(self) -> str:
        """The estimate for a person."""
        parts = ", ".join(f"{name} {_gb(number)}" for name, number in self.parts.items())
        has = "" if self.available is None else f"; this machine has {_gb(self.available)} GB"
        unknown = "" if "activations" in self.parts else "; activations are not known, and come on top"
        return (
            f"memory: about {_gb(self.total)} GB, an estimate: {parts}, with up to {self.num_tokens:,} tokens at a "
            f"time in rows of about {self.row_tokens}{unknown}{has}"
        )


@dataclass(frozen=True)
class DiskEstimate:
    """What checkpoints and the trained model take; `num_checkpoints` is None if their number is not known."""

    checkpoint: int
    model: int
    num_checkpoints: int | None
    free: int
    folder: Path

    @property
    def total(self) -> int:
        """At most at any time, the one that is being written included."""
        return self.checkpoint * (self.num_checkpoints or 0) + self.model

    @property
    def is_too_much(self) -> bool:
        """There is less free space."""
        return self.total > self.free

    @property
    def line(self) -> str:
        """The estimate for a person."""
        number = "" if self.num_checkpoints is None else f"{self.num_checkpoints} x "
        known = "" if self.num_checkpoints is not None else ", and their number is not known"
        return (
            f"{_gb(self.total)} GB on disk: checkpoints {number}{_gb(self.checkpoint)} GB, trained model "
            f"{_gb(self.model)} GB{known}; {_gb(self.free)} GB are free in {self.folder}"
        )


def estimate_memory(
    document: Mapping[str, Any], values: Mapping[str, Any], size: ModelSize, rows: RowCheck | None
) -> MemoryEstimate:
    """Memory of full fine-tuning on one device.

    Args:
        document: the run file.
        values: of its options.
        size: of the model.
        rows: what is known of the training rows, cut to the lengths that they may have; without it each is taken to be
            as long as it may be.
    """
    draws = draws_answers(values)
    answers = max(rows.num_answers if rows is not None else 1 if draws else 2, 1)
    length = values["max_length"] or LENGTH_IF_UNKNOWN
    if rows is not None:
        length = rows.prompt_tokens + rows.answer_tokens
    num_tokens = _tokens_at_a_time(values, answers=answers, length=length)
    training = training_of(document, values, num_tokens=num_tokens, rows=rows)
    is_elsewhere = has_accelerator() and not values["use_cpu"]
    parts = memory_parts(size.num_parameters, size.shape, training)
    if has_own_critic(values):  # taken to be as large as the policy; both run in one forward
        as_policy = ("weights", "gradients", "optimizer", "autocast", "activations")
        parts["critic"] = sum(parts.get(name, 0) for name in as_policy)
    if draws and size.shape is not None:
        cache = _cache_bytes(values, size.shape, training, length)
        parts |= {"cache beyond them": cache - parts["activations"]} if cache > parts["activations"] else {}
    return MemoryEstimate(
        parts=parts,
        num_tokens=num_tokens,
        row_tokens=length,
        available=None if is_elsewhere else memory_bytes(),
    )


def _tokens_at_a_time(values: Mapping[str, Any], *, answers: int, length: int) -> int:
    """Of the part of an optimizer step that one forward is of; each row is a prompt and an answer."""
    training = training_of({}, values, num_tokens=0)
    on_cpu = values["use_cpu"] or not has_accelerator()
    budget = token_budget(values["token_budget"], on_cpu=on_cpu, low_precision=training.is_autocast)
    micro_batch = values["per_device_train_batch_size"] * answers * length
    group = length * (values["num_generations"] if draws_answers(values) else answers)
    step = micro_batch * values["gradient_accumulation_steps"]
    return tokens_of_part(budget, of_group=min(group, micro_batch), of_micro_batch=micro_batch, of_step=step)


def draws_answers(values: Mapping[str, Any]) -> bool:
    """The method draws its own answers, in rounds."""
    return "num_generations" in values


def has_own_critic(values: Mapping[str, Any]) -> bool:
    """A critic that is a model of its own is trained beside the policy."""
    return values.get("critic", "head") != "head"


def plan_of(values: Mapping[str, Any]) -> RoundPlan | None:
    """The arithmetic of a round in one process, or None if there are no rounds, or numbers that do not divide."""
    if not draws_answers(values):
        return None
    try:
        return round_of(values)
    except ValueError:  # told as a fault of the file
        return None


def _cache_bytes(values: Mapping[str, Any], shape: ModelShape, training: Training, length: int) -> int:
    """Keys and values of the answers that are drawn together; gone when the activations of training are there."""
    plan = plan_of(values)
    rows = min(values["generation_max_rows"], plan.rows_per_process if plan else values["generation_max_rows"])
    return 2 * shape.layers * shape.key * rows * length * (2 if training.is_autocast else training.weight_bytes)


def estimate_disk(
    document: Mapping[str, Any], values: Mapping[str, Any], size: ModelSize, num_rows: int | None
) -> DiskEstimate:
    """Disk space that a run takes in its output directory.

    Args:
        document: the run file.
        values: of its options.
        size: of the model.
        num_rows: rows that are trained on, if that is known.
    """
    training = training_of(document, values, num_tokens=0)
    _, folder = output_place(values)
    num_parameters = size.num_parameters * (2 if has_own_critic(values) else 1)
    return DiskEstimate(
        checkpoint=checkpoint_bytes(num_parameters, training, is_model_only=values["save_only_model"]),
        model=num_parameters * training.weight_bytes,
        num_checkpoints=num_checkpoints(values, num_steps(values, num_rows)),
        free=shutil.disk_usage(folder).free,
        folder=folder,
    )


def output_place(values: Mapping[str, Any]) -> tuple[Path, Path]:
    """The output directory, and the directory above it, or itself, that is there."""
    output = Path(values["output_dir"] or "runs").expanduser().absolute()
    return output, next(parent for parent in (output, *output.parents) if parent.is_dir())


def output_problem(values: Mapping[str, Any]) -> str | None:
    """Why nothing can be written into the output directory."""
    output, folder = output_place(values)
    if blocked := next((place for place in (output, *output.parents) if place.is_file()), None):
        return f"training.output_dir: {blocked} is a file: name another directory"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"training.output_dir: nothing can be written into {folder}: name another directory"
    return None


def training_of(
    document: Mapping[str, Any], values: Mapping[str, Any], *, num_tokens: int, rows: RowCheck | None = None
) -> Training:
    """What the options say about memory."""
    accelerated = has_accelerator() and not values["use_cpu"]
    by_default = {None: accelerated}
    return Training(
        num_tokens=num_tokens,
        weight_bytes=_weight_bytes(values["model_init_kwargs"]),
        optimizer_states=OPTIMIZER_STATES.get(values["optim"], DEFAULT_STATES),
        has_reference=_has_reference(document, values, rows),
        is_autocast=bool(values["fp16"] or by_default.get(values["bf16"], values["bf16"])),
        is_checkpointed=bool(by_default.get(values["gradient_checkpointing"], values["gradient_checkpointing"])),
    )


def num_steps(values: Mapping[str, Any], num_rows: int | None) -> int | None:
    """Optimizer steps of the run in one process, or None if the number of rows is not known.

    >>> options = {"max_steps": -1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    >>> num_steps({**options, "num_train_epochs": 2.5}, 9)
    5
    """
    if values["max_steps"] > 0:
        return values["max_steps"]
    plan = plan_of(values)
    if plan is not None and values.get("total_episodes"):
        return plan.steps_of(values["total_episodes"])
    if num_rows is None:
        return None
    if plan is not None:
        steps = plan.micro_batches_in_epoch(num_rows) // plan.micro_batches
        return math.ceil(values["num_train_epochs"] * steps)
    micro_batches = math.ceil(num_rows / values["per_device_train_batch_size"])
    return math.ceil(values["num_train_epochs"] * math.ceil(micro_batches / values["gradient_accumulation_steps"]))


def num_checkpoints(values: Mapping[str, Any], steps: int | None) -> int | None:
    """The most checkpoints that are on disk at a time, or None if it is not known.

    >>> num_checkpoints({"save_strategy": "steps", "save_steps": 10, "save_total_limit": None}, 25)
    3
    >>> num_checkpoints({"save_strategy": "steps", "save_steps": 10, "save_total_limit": 1}, 100)  # the new one too
    2
    """
    strategy, limit = values["save_strategy"], values["save_total_limit"]
    if strategy == "no":
        return 0
    saves: int | None = None
    if strategy == "epoch" and values["max_steps"] <= 0:
        saves = math.ceil(values["num_train_epochs"])
    elif strategy == "steps" and steps is not None:
        every = values["save_steps"]
        saves = math.ceil(steps / (every if every >= 1 else max(math.ceil(every * steps), 1)))
    if limit is None:
        return saves
    at_once = limit + 1 + int(bool(values.get("load_best_model_at_end")))
    return at_once if saves is None else min(saves, at_once)


def _has_reference(document: Mapping[str, Any], values: Mapping[str, Any], rows: RowCheck | None) -> bool:
    """A second model is held beside the policy."""
    method = method_of(document)
    if method is None or not method.takes_reference:
        return False
    if draws_answers(values):
        coefficient = values.get("beta", values.get("kl_coef", 1.0))  # a trainer without one always reads it
        return (coefficient or 0) > 0
    given = values.get("loss_type")  # a trainer of the user's may define its loss itself
    losses = given if isinstance(given, list) else [given]
    reads_none = set(losses) <= set(training_schema(document)["x-reference-free"])
    has_columns = rows is not None and rows.has_reference
    if values.get("reference_free") or reads_none or has_columns:
        return False
    return not values.get("precompute_ref_log_probs") or document.get("ref_model") is not None


def _weight_bytes(init_kwargs: Any) -> int:
    try:
        given = json.loads(init_kwargs) if isinstance(init_kwargs, str) else init_kwargs or {}
        dtype = str(given.get("dtype", given.get("torch_dtype", ""))).removeprefix("torch.")
    except (ValueError, AttributeError):  # told when the model is loaded
        return DEFAULT_BYTES
    return BYTES_OF.get(dtype, DEFAULT_BYTES)


def _gb(number: int) -> str:
    return f"{number / 1e9:.2g}" if number < 1e10 else f"{number / 1e9:,.0f}"
