"""All that can be known about a run before it begins, in one pass and without torch: faults, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish.cli.check_rows import SourceCheck, check_sources
from burnish.cli.errors import DATA, OK, STORAGE, USAGE
from burnish.cli.estimates import (
    LESS_DISK,
    LESS_MEMORY,
    LESS_MEMORY_OF_ROUNDS,
    DiskEstimate,
    MemoryEstimate,
    estimate_disk,
    estimate_memory,
    num_steps,
    output_problem,
    plan_of,
)
from burnish.cli.methods import method_of
from burnish.cli.rulebook import option_values
from burnish.cli.runfile import RunFile, RunFileError, examine, whole
from burnish.cli.validate import training_schema
from burnish.data.check import RowCheck, within
from burnish.data.truncate import TruncationPolicy
from burnish.models.size import ModelFileError, ModelSize, read_model_size

LENGTHS = ("max_length", "max_prompt_length", "max_completion_length", "truncation_mode")


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was found.

    Attributes:
        source: the run file.
        runfile: what it says, if nothing is wrong with it.
        file_problems, data_problems, storage_problems: what is wrong, a sentence each.
        warnings: what may go wrong.
        sources: each source of rows.
        size: of the model; None if it is not on this machine.
        memory, disk: estimates, if the model's size is known.
        lines: what was found, for a person.
    """

    source: str
    runfile: RunFile | None
    file_problems: tuple[str, ...] = ()
    data_problems: tuple[str, ...] = ()
    storage_problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: tuple[SourceCheck, ...] = ()
    size: ModelSize | None = None
    memory: MemoryEstimate | None = None
    disk: DiskEstimate | None = None
    lines: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """All that is wrong."""
        return (*self.file_problems, *self.data_problems, *self.storage_problems)

    @property
    def exit_code(self) -> int:
        """That of the first kind of problem: of the file, of the data, of the disk."""
        kinds = ((self.file_problems, USAGE), (self.data_problems, DATA), (self.storage_problems, STORAGE))
        return next((code for problems, code in kinds if problems), OK)

    @property
    def message(self) -> str:
        """All problems, numbered."""
        return str(RunFileError(self.source, self.problems))

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        memory, disk = self.memory, self.disk
        return {
            "is_sound": not self.problems,
            "problems": {
                "file": list(self.file_problems),
                "data": list(self.data_problems),
                "storage": list(self.storage_problems),
            },
            "warnings": list(self.warnings),
            "run": None if self.runfile is None else self.runfile.as_dict(),
            "sources": [source.as_dict() for source in self.sources],
            "num_parameters": None if self.size is None else self.size.num_parameters,
            "memory": None if memory is None else {**vars(memory), "parts": dict(memory.parts), "total": memory.total},
            "disk": None if disk is None else {**vars(disk), "folder": str(disk.folder), "total": disk.total},
        }


def check_up(path: str, overrides: Sequence[str] = ()) -> Checkup:
    """Check a run file, the rows and the model that it names, and the space that it takes.

    Raises:
        RunFileError: the file cannot be read at all.
    """
    examined = examine(path, overrides)
    document = examined.document if isinstance(examined.document, Mapping) else {}
    problems = list(examined.problems)
    size, name = None, document.get("model")
    if isinstance(name, str) and "model" not in examined.broken:
        try:
            size = read_model_size(name)
        except ModelFileError as error:
            problems.append(f"model: {error}")
    values = _sound_values(document, examined.broken)
    truncation = TruncationPolicy(**{name: values[name] for name in LENGTHS if name in values})
    drops = values["on_bad_row"] == "drop"
    sources = check_sources(document, examined.broken, truncation=truncation, drops=drops, size=size)
    data_problems = [problem for source in sources for problem in source.problems]
    data_problems += _split_problems(values, sources)
    blocked = output_problem(values)
    found = Checkup(
        source=examined.source,
        runfile=None if problems else examined.runfile(),
        file_problems=tuple(problems),
        data_problems=tuple(data_problems),
        storage_problems=() if blocked is None else (blocked,),
        sources=tuple(sources),
        size=size,
        lines=tuple(line for source in sources for line in source.lines),
    )
    return _with_estimates(found, document, values, truncation)


def summary(runfile: RunFile) -> str:
    """What a run file says, in a line."""
    held_out = runfile.eval if runfile.eval_rows is None else f"{runfile.eval_rows} rows of it"
    sources = runfile.train if isinstance(runfile.train, str) else " and ".join(runfile.train.values())
    return (
        f"{runfile.source} is sound: {runfile.method} on {runfile.model}, rows of {sources}, "
        f"held out {held_out or 'nothing'}, {len(runfile.training)} options set"
    )


def _with_estimates(
    found: Checkup, document: Mapping[str, Any], values: Mapping[str, Any], truncation: TruncationPolicy
) -> Checkup:
    size = found.size
    if size is None:
        line = f"model: {document.get('model')} is not here to be read, so memory and disk are not estimated"
        return replace(found, lines=(*found.lines, line))
    num_rows = _num_trained(found.sources)
    num_rows = None if num_rows is None else num_rows - (values["data.eval_rows"] or 0)
    method = method_of(document)
    draws = method is not None and method.draws_answers
    rows = _longest_prompt(found.sources, values) if draws else _longest(found.sources, truncation)
    memory = None if method is None else estimate_memory(document, values, size, rows)
    disk = estimate_disk(document, values, size, num_rows)
    fix = LESS_MEMORY_OF_ROUNDS if draws else LESS_MEMORY
    too_little = f"memory may not suffice: {fix}" if memory is not None and memory.is_too_much else None
    full = f"training.output_dir: {disk.line}: {LESS_DISK}" if disk.is_too_much else None
    return replace(
        found,
        storage_problems=found.storage_problems if full is None else (*found.storage_problems, full),
        warnings=() if too_little is None else (too_little,),
        memory=memory,
        disk=disk,
        lines=(
            *found.lines,
            *_round_lines(values, num_rows),
            f"model: {size.num_parameters:,} parameters, by {size.source}",
            *([] if memory is None else [memory.line]),
            f"output: {disk.line}",
        ),
    )


def _sound_values(document: Mapping[str, Any], broken: frozenset[str]) -> dict[str, Any]:
    """The options, those that are wrong at their defaults."""
    options = training_schema(document)["properties"]
    defaults = {name: option["default"] for name, option in options.items()}
    values = {name: defaults.get(name) if name in broken else v for name, v in option_values(document).items()}
    return {name: whole(value, options.get(name, {})) for name, value in values.items()}


def _split_problems(values: Mapping[str, Any], sources: Sequence[SourceCheck]) -> list[str]:
    """`eval_rows` must leave a row to train on."""
    num_rows, wanted = _num_trained(sources), values["data.eval_rows"]
    if not num_rows or wanted is None or wanted < num_rows:
        return []
    return [f"data.eval_rows: is {wanted}; allowed: 1 to {num_rows - 1}, of {num_rows} rows"]


def _num_trained(sources: Sequence[SourceCheck]) -> int | None:
    """Rows of all training sources, or None if they are not all counted."""
    numbers = [source.num_rows for source in sources if source.is_trained]
    return sum(filter(None, numbers)) if numbers and None not in numbers else None


def _round_lines(values: Mapping[str, Any], num_rows: int | None) -> list[str]:
    """The arithmetic of the rounds of a method that draws its own answers."""
    plan, steps = plan_of(values), num_steps(values, num_rows)
    return [] if plan is None or steps is None else [f"rounds: {plan.describe(num_steps=steps)}"]


def _longest_prompt(sources: Sequence[SourceCheck], values: Mapping[str, Any]) -> RowCheck | None:
    """The longest prompt within its limit, and the longest answer that may be drawn to it."""
    checks = [source.rows for source in sources if source.is_trained and source.rows is not None]
    rows = max(checks, key=lambda rows: rows.prompt_tokens, default=None)
    if rows is None:
        return None
    prompt = min(rows.prompt_tokens, values["max_prompt_length"] or rows.prompt_tokens)
    return replace(rows, prompt_tokens=prompt, answer_tokens=values["max_completion_length"] or 0)


def _longest(sources: Sequence[SourceCheck], truncation: TruncationPolicy) -> RowCheck | None:
    """Of the training sources that were looked at, the one with the longest rows, within their limits."""
    checks = [within(source.rows, truncation) for source in sources if source.is_trained and source.rows is not None]
    return max(checks, key=lambda rows: rows.num_answers * (rows.prompt_tokens + rows.answer_tokens), default=None)
