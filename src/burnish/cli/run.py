"""From a run file to a trained model, and to the numbers that say what came of it."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from burnish.cli.answers import sample_prompts
from burnish.cli.methods import METHODS, load
from burnish.cli.narration import Narration
from burnish.cli.runfile import RunFile
from burnish.cli.validate import is_function_name
from burnish.data.sources import load_rows, split_rows
from burnish.metrics import Estimate
from burnish.report.console import ProgressLine, Sample, final_table
from burnish.runtime.rundir import CONFIG, RunExistsError

if TYPE_CHECKING:
    from burnish.trainers.config import PolicyConfig
    from burnish.trainers.dpo import DPOTrainer


@dataclass(frozen=True)
class Outcome:
    """What came of a run: held-out estimates by name, sample answers, and the run directory."""

    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    samples: tuple[Sample, ...]
    run_dir: Path


def run(runfile: RunFile, *, resume: bool = False, console: Console | None = None) -> Outcome:
    """Train what a run file says, evaluating before and after; the model is saved in the run directory.

    Args:
        runfile: a checked run file.
        resume: continue from the newest sound checkpoint of its `output_dir`.
        console: where to show the run; the terminal if None.

    Raises:
        RunExistsError: the run directory holds a run that is neither resumed nor overwritten.
        DataError: rows that cannot be trained on.
        DivergedError: too many steps in a row were not finite.
        CheckpointError: a checkpoint could not be written.
    """
    console = console or Console()
    make_config, make_trainer = load(METHODS[runfile.method])
    args = make_config(**with_functions(runfile.training))
    run_dir = Path(str(args.output_dir))
    if not resume and not args.overwrite_output_dir:
        _refuse_occupied(run_dir)
    train_rows, held_out = load_data(runfile, args)
    trainer = make_trainer(
        runfile.model,
        args,
        ref_model=runfile.ref_model,
        train_dataset=train_rows,
        eval_dataset=held_out,
        peft_config=runfile.peft,
    )
    trainer.run_file = {name: value for name, value in runfile.as_dict().items() if name != "training"}
    asked = next(iter(held_out.values())) if isinstance(held_out, dict) else held_out
    prompts = sample_prompts(train_rows if asked is None else asked, trainer.processing_class, runfile.samples)
    progress, narration = ProgressLine(console), Narration(trainer, runfile, prompts, console)
    _replace_callbacks(trainer, progress, narration)
    disable_progress_bar()  # those of loading are over, and those of saving would break the progress line
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        progress.stop()
    trainer.save_model(str(run_dir))
    outcome = Outcome(narration.before, narration.after, narration.samples(), run_dir)
    if trainer.is_world_process_zero():
        commands = next_commands(run_dir, num_steps=trainer.state.max_steps)
        console.print(final_table(outcome.before, outcome.after, outcome.samples, run_dir, commands), crop=False)
    return outcome


def next_commands(run_dir: Path, *, num_steps: int) -> list[str]:
    """Three commands to try after a run."""
    again = f"burnish train {shlex.quote(str(run_dir / CONFIG))} --set output_dir=null"
    return [f"{again} --set max_steps={2 * num_steps}", f"{again} --set beta=0.3", "burnish init dpo > my-run.yaml"]


def with_functions(training: Mapping[str, Any]) -> dict[str, Any]:
    """The options with `module:function` replaced by the function."""
    given = training.get("loss_type")
    if given is None:
        return dict(training)
    losses = [
        _import(loss) if is_function_name(loss) else loss for loss in ([given] if isinstance(given, str) else given)
    ]
    return {**training, "loss_type": losses}


def _import(name: str) -> Any:
    """The function `module:function`, of a module here or among the installed packages."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    module = importlib.import_module(module_name)
    if function_name not in vars(module):
        functions = ", ".join(
            sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        )
        raise ValueError(
            f"loss_type {name!r}: {module_name} has no {function_name!r}; it has: {functions or 'no functions'}"
        )
    return vars(module)[function_name]


def _refuse_occupied(run_dir: Path) -> None:
    """Before a model is loaded; the run directory itself refuses again when it is opened."""
    if (run_dir / CONFIG).exists():
        shown = shlex.quote(str(run_dir))
        raise RunExistsError(
            f"{run_dir} already holds a run. Fix, one of:\n"
            f"- continue it: burnish resume {shown}\n"
            "- leave it alone: --set output_dir=<another directory>\n"
            "- set it aside and start anew: --set overwrite_output_dir=true"
        )


def load_data(runfile: RunFile, args: PolicyConfig) -> tuple[Dataset, Dataset | dict[str, Dataset] | None]:
    """The rows that a run file trains on, and those it holds out."""
    rows = load_rows(runfile.train)
    if runfile.eval_rows is not None:
        return split_rows(rows, runfile.eval_rows, args.seed)
    if isinstance(runfile.eval, str):
        return rows, load_rows(runfile.eval)
    if runfile.eval is None:
        return rows, None
    return rows, {name: load_rows(source) for name, source in runfile.eval.items()}


def _replace_callbacks(trainer: DPOTrainer, progress: ProgressLine, narration: Narration) -> None:
    """The progress line first, so that it has ended when the run is summed up."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    trainer.add_callback(narration)
