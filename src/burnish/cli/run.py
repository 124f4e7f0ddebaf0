"""From a run file to a trained model, and to the numbers that say what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback
from transformers.utils.logging import disable_progress_bar

from burnish.cli.answers import greedy_answers, prompt_samples, sample_prompts
from burnish.cli.functions import reward_functions, with_functions
from burnish.cli.methods import load, method_named
from burnish.cli.narration import Narration
from burnish.cli.runfile import RunFile
from burnish.cli.samples import Samples, scored_samples
from burnish.data.shares import apportion
from burnish.data.sources import load_rows, load_stream, split_rows
from burnish.metrics import Estimate
from burnish.report.console import ProgressLine, Sample, final_table
from burnish.runtime.checkpoint import checkpoints
from burnish.runtime.rundir import CONFIG, RunExistsError

if TYPE_CHECKING:
    from burnish.trainers.config import PolicyConfig
    from burnish.trainers.dpo import DPOTrainer

Rows = Dataset | dict[str, Dataset]


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
    method = method_named(runfile.method)
    make_config, trainer_class = load(method)
    args = make_config(**with_functions(runfile.training))
    run_dir = Path(str(args.output_dir))
    if not resume and not args.overwrite_output_dir:
        _refuse_occupied(run_dir)
    train_rows, held_out = load_data(runfile, args)
    trainer = make_trainer(runfile, args, trainer_class, train_rows=train_rows, held_out=held_out)
    trainer.run_file = {name: value for name, value in runfile.as_dict().items() if name != "training"}
    if method.draws_answers:
        trainer.round_report.console = console
    asked = rows_by_source(train_rows if held_out is None else held_out, num_streamed=max(runfile.samples, 1))
    samples = take_samples(runfile, trainer, next(iter(asked.values())))
    progress, narration = ProgressLine(console), Narration(trainer, runfile, samples, console)
    _replace_callbacks(trainer, progress, narration)
    disable_progress_bar()  # those of loading are over, and those of saving would break the progress line
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        progress.stop()
    outcome = Outcome(narration.before, narration.after, narration.samples(), run_dir)
    commands = [f"burnish resume {shlex.quote(str(run_dir))}"] if checkpoints(run_dir) else []  # saves it again
    try:
        trainer.save_model(str(run_dir))
        commands = next_commands(run_dir, runfile.method, num_steps=trainer.state.max_steps)
    finally:  # a disk that is full, or a hub that cannot be reached, does not hide what came of the run
        if trainer.is_world_process_zero():
            console.print(final_table(outcome.before, outcome.after, outcome.samples, run_dir, commands), crop=False)
    return outcome


def make_trainer(runfile: RunFile, args: Any, trainer_class: Any, *, train_rows: Any, held_out: Any = None) -> Any:
    """The trainer of a run file, with its model, rewards and reference; `trainer_class` is the method's, or of it."""
    method = method_named(runfile.method)
    return trainer_class(
        runfile.model,
        args=args,
        **({"reward_funcs": reward_functions(runfile.rewards)} if method.draws_answers else {}),
        **({"ref_model": runfile.ref_model} if method.takes_reference else {}),
        train_dataset=train_rows,
        eval_dataset=held_out,
        peft_config=runfile.peft,
    )


def take_samples(runfile: RunFile, trainer: Any, rows: Dataset) -> Samples:
    """What is shown before and after: greedy answers to a few prompts; of a reward model, the scores of a few rows."""
    method = method_named(runfile.method)
    if not method.writes_answers:
        return scored_samples(trainer, rows, runfile.samples)
    has_answers = method.knows_rows and not method.draws_answers
    make_prompts = partial(sample_prompts, kind=method.reads) if has_answers else prompt_samples
    is_asked = method.knows_rows or "prompt" in rows.column_names  # rows of an unknown kind may hold anything
    prompts = make_prompts(rows, trainer.processing_class, runfile.samples) if is_asked else []
    ends = trainer.sampling if method.draws_answers else None  # an answer ends here where it ends in training
    answer = partial(
        greedy_answers,
        trainer.policy,
        trainer.tokenizer,
        prompts,
        max_new_tokens=runfile.max_new_tokens,
        end_token_ids=ends.end_token_ids if ends else trainer.end_token_ids,
        stop_strings=ends.stop_strings if ends else (),
    )
    return Samples("answering the sample prompts", [prompt.shown for prompt in prompts], answer)


def next_commands(run_dir: Path, method: str, *, num_steps: int) -> list[str]:
    """Commands to try after a run."""
    again = f"burnish train {shlex.quote(str(run_dir / CONFIG))} --set output_dir=null"
    retry = method_named(method).retry
    return [
        f"{again} --set max_steps={2 * num_steps}",
        *([f"{again} --set {retry}"] if retry else []),
        f"burnish init {method} > my-run.yaml",
    ]


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


def load_data(runfile: RunFile, args: PolicyConfig) -> tuple[Rows | IterableDataset, Rows | None]:
    """The rows that a run file trains on, and those it holds out."""
    if isinstance(runfile.train, str) and runfile.streaming:
        return load_stream(runfile.train), None if runfile.eval is None else _load(runfile.eval)
    rows = _load(runfile.train)
    if runfile.eval_rows is None:
        return rows, None if runfile.eval is None else _load(runfile.eval)
    return hold_out(rows, runfile.eval_rows, args.seed)


def hold_out(rows: Rows, eval_rows: int, seed: int) -> tuple[Rows, Rows]:
    """Training rows and held-out rows; of several sources each gives its part of the latter.

    Raises:
        DataError: there are not enough rows to leave one for training.
    """
    if isinstance(rows, Dataset):
        return split_rows(rows, eval_rows, seed)
    parts = dict(zip(rows, apportion(eval_rows, [len(source) for source in rows.values()]), strict=True))
    split = {name: split_rows(source, parts[name], seed) for name, source in rows.items() if parts[name]}
    train = {name: split[name][0] if name in split else source for name, source in rows.items()}
    return train, {name: held_out for name, (_, held_out) in split.items()}


def _load(sources: str | Mapping[str, str]) -> Rows:
    if isinstance(sources, str):
        return load_rows(sources)
    return {name: load_rows(source) for name, source in sources.items()}


def rows_by_source(rows: Rows | IterableDataset, *, num_streamed: int = 1000) -> dict[str, Dataset]:
    """The rows of each source by its name, "" if there is only one; of a stream the first ones."""
    if isinstance(rows, IterableDataset):
        return {"": load_rows(list(rows.take(num_streamed)))}
    return {"": rows} if isinstance(rows, Dataset) else rows


def _replace_callbacks(trainer: DPOTrainer, progress: ProgressLine, narration: Narration) -> None:
    """The progress line first, so that it has ended when the run is summed up."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(progress)
    trainer.add_callback(narration)
