"""One micro-batch of a run, wall by wall: the run file's own trainer, model and rows, watched, and then given up."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.utils.logging import disable_progress_bar as disable_bars_of_rows
from rich.console import Console
from rich.text import Text
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar as disable_bars_of_loading

from burnish.cli.functions import with_functions
from burnish.cli.methods import load, method_named
from burnish.cli.plan import plan_lines
from burnish.cli.run import load_data, make_trainer
from burnish.cli.runfile import RunFile
from burnish.report.trace import Trace, trace_of
from burnish.report.trace_console import trace_table
from burnish.report.trace_html import trace_page
from burnish.runtime.rundir import atomic_write_text
from burnish.runtime.terminal import visible
from burnish.trainers.witness import Witness, watched

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

# What belongs to a run and not to a micro-batch: files, reports, and what is made of the whole data set. Evaluations
# would come after it: their options stay, since others need them.
LEFT_OUT = {
    "save_strategy": "no",
    "eval_on_start": False,
    "load_best_model_at_end": False,
    "report_to": "none",
    "push_to_hub": False,
    "disable_tqdm": True,
    "precompute_ref_log_probs": False,
    "precompute_ref_batch_size": None,
    "cpu_tuning": "off",
}


class MicroBatchEnd(Exception):
    """Forward and backward of the first micro-batch are over; the optimizer has not moved."""


class _StopAfterMicroBatch(TrainerCallback):
    """Ends training before the first optimizer step, and tells the plan."""

    def __init__(self, runfile: RunFile, trainer: Any) -> None:
        self._runfile, self._trainer = runfile, trainer
        self.lines: tuple[str, ...] = ()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """What `burnish train` would say; not the run directory, which is none."""
        self.lines = tuple(plan_lines(self._runfile, self._trainer, state)[:-1])

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a micro-batch that is not the step's last."""
        raise MicroBatchEnd

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the step's last micro-batch."""
        raise MicroBatchEnd


def trace_run(runfile: RunFile) -> Trace:
    """Train on the first micro-batch of a run, and tell what crossed the walls.

    Nothing is evaluated, and nothing is kept: the weights are never moved, and the run directory is a temporary one.

    Args:
        runfile: a checked run file.

    Raises:
        DataError: rows that cannot be trained on, as `burnish check` and `burnish train` say it.
        ValueError: an option or a combination that is not supported.
    """
    make_config, trainer_class = load(method_named(runfile.method))
    witness = Witness()
    disable_bars_of_rows()
    disable_bars_of_loading()
    with tempfile.TemporaryDirectory() as directory:
        known = {field.name for field in fields(make_config)}
        left_out = {name: value for name, value in LEFT_OUT.items() if name in known}
        args = make_config(**{**with_functions(runfile.training), **left_out, "output_dir": directory})
        rows, held_out = load_data(runfile, args)
        trainer = make_trainer(runfile, args, watched(trainer_class, witness), train_rows=rows, held_out=held_out)
        trainer.together.waits = False
        stop = _StopAfterMicroBatch(runfile, trainer)
        trainer.add_callback(stop)
        with contextlib.suppress(MicroBatchEnd):
            trainer.train()
    title = f"{runfile.method} on {runfile.model}: one micro-batch, wall by wall"
    return trace_of(witness, trainer.tokenizer, title=title, notes=stop.lines)


def show(trace: Trace, *, html: Path | None = None, console: Console | None = None) -> None:
    """On the terminal."""
    console = console or Console()
    console.print(trace_table(trace))
    if html is not None:
        console.print(Text(visible(f"\nwritten: {html}")), soft_wrap=True)


def write_page(trace: Trace, path: Path) -> None:
    """As an HTML file; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, trace_page(trace))
