"""Options that every trainer has. Each is documented once, in its `arg`; help, templates and docs are made of that.

Names and defaults are TRL's wherever TRL has the option. Only what a machine cannot do differs: without an
accelerator, `bf16` and `gradient_checkpointing` are off unless asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from datetime import datetime
from enum import Enum
from typing import Any

import torch
from transformers import TrainingArguments

from burnish.compat import resolve_checkpointing
from burnish.data.kinds import PREFERENCES
from burnish.models.lean import LEAN
from burnish.models.sharing import SHARING
from burnish.trainers.ranges import check_ranges

# TrainingArguments field -> (values that are fine, why the others are not).
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_find_batch_size": (
        (False,),
        "it changes the batch behind the data order; lower per_device_train_batch_size",
    ),
    "label_smoothing_factor": (
        (0, 0.0),
        "it smooths token labels; label_smoothing smooths preference labels",
    ),
    "remove_unused_columns": ((False,), "parcels are no model inputs"),
    "logging_nan_inf_filter": ((False,), "it hides losses that are not finite"),
    "include_num_input_tokens_seen": (("no", False), "num_tokens is logged always, and survives a resume"),
    "deepspeed": ((None,), "DeepSpeed checkpoints are pickle files; not built yet"),
    "neftune_noise_alpha": ((None,), "noise in the policy but not in the reference; not built yet"),
    "use_liger_kernel": ((False,), "it puts a forward of its own in the place of Burnish's"),
    "train_sampling_strategy": (("random",), "the order of rows is (seed, epoch); not built yet"),
    "eval_use_gather_object": ((False,), "metrics are sums"),
    # what follows is about things that do not exist here, so it would have no effect
    "average_tokens_across_devices": ((True,), "counts are always summed over all processes"),
    "bf16_full_eval": ((False,), "evaluation runs in the precision of training"),
    "fp16_full_eval": ((False,), "evaluation runs in the precision of training"),
    "liger_kernel_config": ((None,), "use_liger_kernel is not supported"),
    "torch_compile_mode": (
        (None, "default", "max-autotune-no-cudagraphs"),
        "CUDA graphs are for one length, and batches have many",
    ),
    "prediction_loss_only": ((False,), "evaluation returns sums, not predictions"),
    "eval_do_concat_batches": ((True,), "evaluation returns sums, not predictions"),
    "eval_accumulation_steps": ((None,), "evaluation returns sums, not predictions"),
    "batch_eval_metrics": ((False,), "there is no compute_metrics"),
    "dataloader_persistent_workers": ((False,), "the loader is Burnish's own"),
    "dataloader_prefetch_factor": ((None,), "the loader is Burnish's own"),
    "dataloader_multiprocessing_context": ((None,), "the loader is Burnish's own"),
    "dataloader_in_order": ((True,), "rows are always in order"),
    "label_names": ((None,), "parcels have no labels"),
    "length_column_name": (("length",), "rows are not grouped by length"),
}
# Options whose type is plain text, but which take only these.
CHOICES: dict[str, tuple[str, ...]] = {
    "truncation_mode": ("keep_start", "keep_end"),
    "on_bad_row": ("error", "drop"),
    "cpu_tuning": ("auto", "off"),
    "prefix_sharing": SHARING,
    "lean_activations": LEAN,
    "head_init": ("normal", "zeros"),
}


def arg(default: Any, help: str) -> Any:
    """A config field with its default and the one sentence that documents it."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class DataOptions(TrainingArguments):
    """What becomes of the rows, in every trainer."""

    dataset_num_proc: int | None = arg(None, "Processes that tokenise the data sets.")
    max_length: int | None = arg(1024, "Longest prompt plus answer in tokens; longer ones are cut and counted.")
    truncation_mode: str = arg(
        "keep_start", "What a cut keeps: keep_start cuts the answer's end, keep_end the prompt's start."
    )
    max_prompt_length: int | None = arg(None, "Longest prompt in tokens; its end is kept.")
    max_completion_length: int | None = arg(None, "Longest answer in tokens; its start is kept.")
    on_bad_row: str = arg(
        "error", "Rows that cannot be trained on: error names them all, drop leaves them out and counts them."
    )
    dataset_weights: dict[str, float] | str | list[float] | None = arg(  # text: JSON, of HfArgumentParser
        None, "How much of an epoch each of several sources is, in relation to the others; unset: every row once."
    )
    shuffle_buffer_size: int | None = arg(
        None, "Rows of a stream among which the next one is drawn; unset: the stream's own order."
    )


@dataclass
class PolicyConfig(DataOptions):
    """Options of every trainer, on top of `transformers.TrainingArguments` and `DataOptions`.

    `options_set` holds the names of those that were given another value than their default. What a method does with
    rows is no option: `keeps_template_end`, see `burnish.data.encode.train_tokens`, `margin_from_scores`, see
    `PreferenceCollator`, and `row_kind` and `whole_rows`, see `prepare_preferences`; `row_kind` may also be prompts, or
    a kind that only the trainer knows.
    """

    keeps_template_end = False
    margin_from_scores = True
    row_kind = PREFERENCES

    output_dir: str | None = arg(None, "Run directory. Unset: a new one, runs/<method>-<date>-<time>.")
    overwrite_output_dir: bool = arg(
        False, "Move an earlier run in output_dir aside, into previous-<n>, and start anew."
    )
    learning_rate: float = arg(1e-6, "Peak learning rate.")
    logging_steps: float = arg(10, "Log every so many optimizer steps; below 1, a share of the run.")
    bf16: bool | None = arg(None, "Train under bfloat16 autocast. Unset: on if there is a CUDA or XPU device.")
    gradient_checkpointing: bool | None = arg(
        None, "Recompute activations in the backward pass. Unset: on with an accelerator."
    )
    remove_unused_columns: bool | None = arg(False, "Must stay False.")
    logging_nan_inf_filter: bool = arg(False, "Must stay False: a loss that is not finite is shown as what it was.")
    model_init_kwargs: dict[str, Any] | str | None = arg(
        None, "Keywords for from_pretrained when the model is given by name."
    )
    trust_remote_code: bool = arg(False, "Run Python code that comes with a model from the hub.")
    disable_dropout: bool = arg(True, "Set every dropout of policy and reference to 0.")
    pad_to_multiple_of: int | str | None = arg(None, "Pad lengths up to a multiple of this.")
    max_skipped_steps: int = arg(10, "End the run after so many steps in a row whose loss or gradient is not finite.")
    prefix_sharing: str = arg(
        "auto", "How a prompt with several answers is run: auto, tree or cache (once), off (once for each answer)."
    )
    lean_activations: str = arg(
        "auto", "auto keeps less of norms and feed-forwards for the backward pass, where it is exact; off keeps all."
    )
    token_budget: int | None = arg(
        None,
        "Most tokens of one forward; micro-batches are cut to it, and small ones of a step put together. 0: each as "
        "it is. Unset: 1024 on a CPU, there in low precision 4096, else as they are.",
    )
    cpu_tuning: str = arg(
        "auto", "auto probes threads, allocator and matrix products of a CPU run; off leaves them alone."
    )

    def __post_init__(self) -> None:
        self.options_set = self.changed()
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        accelerated = not self.use_cpu and (torch.cuda.is_available() or torch.xpu.is_available())
        if self.bf16 is None:
            self.bf16 = accelerated and not self.fp16
        resolve_checkpointing(self, default=accelerated)
        if self.output_dir is None:
            self.output_dir = _new_run_directory(type(self).__name__.removesuffix("Config").lower())
        if isinstance(self.dataset_weights, str):
            self.dataset_weights = json.loads(self.dataset_weights)
        if self.pad_to_multiple_of == "auto":
            self.pad_to_multiple_of = None
        self._refuse()
        super().__post_init__()

    @property
    def whole_rows(self) -> frozenset[str]:
        """Columns of supervised answers whose rows are trained as a whole."""
        return frozenset()

    def changed(self) -> tuple[str, ...]:
        """The options that have another value than their default now."""
        return tuple(item.name for item in fields(self) if item.init and self._is_set(item))

    def _is_set(self, item: Field[Any]) -> bool:
        """Whether an option was given another value than its default."""
        default = item.default if item.default_factory is MISSING else item.default_factory()
        return getattr(self, item.name) != default

    def _refuse(self) -> None:
        known = {item.name for item in fields(self)}
        for name, (allowed, reason) in REFUSED.items():
            value = getattr(self, name) if name in known else allowed[0]
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not supported: {reason}. Allowed: {allowed[0]!r}.")
        for name, allowed in CHOICES.items():
            if name in known and getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        check_ranges(self)
        multiple = self.pad_to_multiple_of
        if multiple is not None and not (str(multiple).isdecimal() and int(multiple) > 0):
            raise ValueError(f"pad_to_multiple_of={multiple!r}; allowed: 1 or more, 'auto', or unset")

    def resolved(self) -> dict[str, Any]:
        """Every option with its value, in types that YAML and JSON know; callables by their name."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self) if field.init}


def _new_run_directory(method: str) -> str:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "output_dir is not set, and the processes of a distributed run must agree on it: set output_dir"
        )
    return os.path.join("runs", f"{method}-{datetime.now():%Y%m%d-%H%M%S-%f}")


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else str(value)
