"""What a run is about to do, as lines for the console."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from burnish.cli.methods import METHODS, method_named
from burnish.cli.runfile import RunFile
from burnish.models.adapter_summary import adapter_line
from burnish.models.adapters import plain_model
from burnish.models.lean import lean_line
from burnish.trainers.parts import token_budget
from burnish.trainers.precompute import could_precompute

if TYPE_CHECKING:
    import torch
    from transformers import TrainerState

    from burnish.trainers.dpo import DPOTrainer

SHOWN_FACTORS = ("beta", "center_rewards_coefficient")


def plan_lines(runfile: RunFile, trainer: DPOTrainer, state: TrainerState) -> list[str]:
    """Model, reference, data, steps, settings of the CPU and run directory of a run that is about to begin."""
    args, model = trainer.args, trainer.policy
    reports = list(trainer.data_reports.values())
    method = method_named(runfile.method)
    unit = "pair" if method.reads == "preferences" else "row"
    objective = _rollout_lines if method.draws_answers else partial(_row_lines, unit=unit)
    lines = [
        f"{runfile.method} on {runfile.model}: {type(plain_model(model)).__name__}, "
        f"{model.num_parameters():,} parameters, {_name_of(model.dtype)} on {args.device}{_precision(args)}",
        *filter(None, [adapter_line(model)]),
        *([f"reference: {reference.description}"] if (reference := vars(trainer).get("reference")) else []),
        *(line for report in reports for line in report.lines()),
        *(trainer.mixture.lines() if trainer.mixture is not None else ()),
        *objective(trainer, state),
    ]
    if method.name in METHODS and method.takes_reference and not method.draws_answers:
        lines += _repeated_reference(trainer, state)
    lines += [trainer.sharing.line(), *parts_lines(token_budget(args)), lean_line(plain_model(model))]
    if trainer.num_compiled_layers:
        lines.append(trainer.compiled_line())
    if trainer.cpu_settings is not None:
        lines += trainer.cpu_settings.lines()
    return [*lines, f"run directory: {args.output_dir}"]


def _rollout_lines(trainer: Any, state: TrainerState) -> list[str]:
    """Rewards, loss, and the arithmetic of a round."""
    args, sampling = trainer.args, trainer.sampling
    named = zip(trainer.scorer.names, trainer.scorer.weights, strict=True)
    weights = [f"{weight:g} {name}" if weight != 1 else name for name, weight in named]
    return [
        f"rewards: {' + '.join(weights)}; an answer is right from {args.solved_reward:g} on",
        f"loss: {_loss(trainer)}; learning rate {args.learning_rate:g}, {_name(args.lr_scheduler_type)}",
        *trainer.objective_lines(),
        f"{trainer.plan.describe(num_steps=state.max_steps)}; at most {sampling.max_new_tokens} tokens an answer, "
        f"temperature {sampling.temperature:g}",
    ]


def _row_lines(trainer: Any, state: TrainerState, *, unit: str) -> list[str]:
    """Loss, and the arithmetic of a step over rows of the data set."""
    args = trainer.args
    factors = [f", {name} {value:g}" for name in SHOWN_FACTORS if (value := vars(args).get(name))]
    return [
        f"loss: {_loss(trainer)}{''.join(factors)}; learning rate {args.learning_rate:g}, "
        f"{_name(args.lr_scheduler_type)}",
        steps_line(
            num_steps=state.max_steps,
            done=state.global_step,
            pairs=args.per_device_train_batch_size,
            micro_batches=args.gradient_accumulation_steps,
            processes=args.world_size,
            num_rows=len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else 0,
            unit=unit,
        ),
    ]


def _repeated_reference(trainer: DPOTrainer, state: TrainerState) -> list[str]:
    """That a reference says the same of the same rows in every pass, and how to ask it once."""
    args, rows = trainer.args, trainer.train_dataset
    each = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if not isinstance(rows, Dataset) or state.max_steps * each <= len(rows) or not could_precompute(trainer):
        return []
    return [
        f"The reference scores each row anew in each of {state.max_steps * each / len(rows):.3g} passes, and always "
        "says the same: precompute_ref_log_probs=true asks it once."
    ]


def parts_lines(budget: int | None) -> list[str]:
    """How much of an optimizer step is trained on at a time.

    >>> parts_lines(1024)
    ['Up to 1,024 tokens of a step at a time: micro-batches are cut, and small ones put together (token_budget).']
    """
    if budget is None:
        return []
    how = "micro-batches are cut, and small ones put together"
    return [f"Up to {budget:,} tokens of a step at a time: {how} (token_budget)."]


def steps_line(
    *, num_steps: int, done: int, pairs: int, micro_batches: int, processes: int, num_rows: int, unit: str = "pair"
) -> str:
    """The arithmetic of the steps; `pairs` counts the `unit` of a micro-batch.

    >>> steps_line(num_steps=30, done=0, pairs=8, micro_batches=2, processes=1, num_rows=320)
    '30 steps, 1.5 passes over 320 rows: 8 pairs x 2 micro-batches x 1 process = 16 pairs a step'
    """
    each = pairs * micro_batches * processes
    what = _count(num_steps, "step") if not done else f"steps {done + 1} to {num_steps}"
    passes = f", {num_steps * each / num_rows:.3g} passes over {num_rows} rows" if num_rows else ""
    terms = (_count(pairs, unit), _count(micro_batches, "micro-batch"), _count(processes, "process"))
    return f"{what}{passes}: {' x '.join(terms)} = {_count(each, unit)} a step"


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}es" if noun.endswith(("s", "ch")) else f"{number} {noun}s"


def _loss(trainer: Any) -> str:
    """The losses of the table that were chosen; else the trainer, which defines its own."""
    options = vars(trainer.args)
    if "loss_type" not in options or trainer.loss_table is None:
        return type(trainer).__name__
    given = options["loss_type"]
    return _losses(given if isinstance(given, list) else [given], options.get("loss_weights"))


def _losses(losses: Sequence[Any], weights: Sequence[float] | None) -> str:
    names = [loss if isinstance(loss, str) else f"{loss.__module__}:{loss.__qualname__}" for loss in losses]
    if weights is None:
        return " + ".join(names)
    return " + ".join(f"{weight:g} {name}" for weight, name in zip(weights, names, strict=True))


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _precision(args: Any) -> str:
    return ", bf16 autocast" if args.bf16 else ", fp16 autocast" if args.fp16 else ""


def _name(choice: Any) -> str:
    return str(choice.value)
