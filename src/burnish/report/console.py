"""What a run shows on the console: a progress line, and the table at the end. It reads, and writes no files."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from burnish.report.numbers import Estimated, compare, duration, held_out_sizes, reliability_bins
from burnish.runtime.terminal import visible

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from burnish.trainers.sampling import EvalAnswers

SHOWN = {
    "loss": "loss {:.4f}",
    "rewards/margins": "margin {:+.3f}",
    "rewards/accuracies": "accuracy {:.2f}",
    "margin": "margin {:+.3f}",
    "accuracy": "accuracy {:.2f}",
    "reward": "reward {:.3f}",
    "solve_rate": "right {:.2f}",
    "objective/kl": "KL {:.2f} nats",
    "val/explained_variance": "critic knows {:.2f}",
    "completions/mean_length": "{:.0f} tokens an answer",
    "num_skipped_steps": "{:.0f} steps skipped",
}
SHOWN_HELD_OUT = (
    "_loss", "_rewards/accuracies", "_rewards/margins", "_win_rate", "_reward", "_accuracy", "_accuracy_greedy",
    "_margin", "_calibration_error",
)  # fmt: skip
NUM_TIMED_STEPS = 20


@dataclass(frozen=True)
class Answer:
    """A greedy answer; `is_cut` if it did not end within the tokens it was given."""

    text: str
    is_cut: bool


@dataclass(frozen=True)
class Sample:
    """A prompt, and the answers before (None: not known) and after training."""

    prompt: str
    before: Answer | None
    after: Answer


class ProgressLine(TrainerCallback):
    """A live line on a terminal, else one line for each log line of the training.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._logs: dict[str, float] = {}
        self._seconds: deque[float] = deque(maxlen=NUM_TIMED_STEPS)
        self._last_end: float | None = None
        self._step, self._total = 0, 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the live line and the clock, at the first step."""
        if self._last_end is None:
            self._last_end = time.perf_counter()
        if self._live is None and self._console.is_terminal and state.is_world_process_zero:
            self._live = Live(get_renderable=self._line, console=self._console, refresh_per_second=4)
            self._live.start()
        self._step, self._total = state.global_step, state.max_steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Time the step."""
        now = time.perf_counter()
        if self._last_end is not None:
            self._seconds.append(now - self._last_end)
        self._last_end, self._step, self._total = now, state.global_step, state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take over the numbers of a log line of training; show one of evaluation during training on its own line."""
        numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        if "loss" in numbers:
            self._logs = numbers
            self._step = state.global_step
        if not state.is_world_process_zero:
            return
        if "loss" in numbers and self._live is None:
            self._console.print(self._line(), soft_wrap=True)
        elif any(name.startswith("eval_") for name in numbers) and self._last_end is not None:
            self._console.print(Text(evaluation_line(state.global_step, numbers)), soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the last line as it is."""
        self.stop()
        self._last_end = None

    def stop(self) -> None:
        """Give the terminal back; also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self) -> Text:
        seconds = statistics.median(self._seconds) if self._seconds else None
        return Text(progress_line(self._step, self._total, self._logs, seconds))


def progress_line(step: int, total: int, logs: Mapping[str, float], seconds: float | None) -> str:
    """Where training is: step, latest numbers, seconds a step, time left.

    >>> progress_line(12, 30, {"loss": 0.65, "rewards/margins": 0.09}, 9.5)
    'step 12/30 · loss 0.6500 · margin +0.090 · 9.5 s a step · 2 min 51 s left'
    """
    parts = [f"step {step}/{total}"]
    for name, form in SHOWN.items():
        if name in logs and (name != "num_skipped_steps" or logs[name]):
            parts.append(form.format(logs[name]))
    if seconds is not None:
        parts += [f"{seconds:.2g} s a step" if seconds < 10 else f"{seconds:.0f} s a step"]
        parts += [f"{duration(seconds * (total - step))} left"] if total > step else []
    return " · ".join(parts)


def evaluation_line(step: int, numbers: Mapping[str, float]) -> str:
    """The held-out numbers of an evaluation in the middle of training."""
    shown = [f"{name} {value:.4f}" for name, value in numbers.items() if name.endswith(SHOWN_HELD_OUT)]
    return f"step {step} · {' · '.join(shown)}"


def final_table(
    before: Mapping[str, Estimated],
    after: Mapping[str, Estimated],
    samples: Sequence[Sample],
    run_dir: Path | str,
    next_commands: Sequence[str],
) -> RenderableType:
    """What came of a run: numbers before and after, answers side by side, where it lies, what to try next."""
    parts: list[RenderableType] = [*_numbers(before, after), *_samples(samples)]
    parts.append(Text(f"\nRun directory: {visible(str(run_dir))}"))
    if next_commands:
        parts.append(Text("Next:"))
        parts += [Text(f"  {visible(command)}", no_wrap=True, overflow="ignore") for command in next_commands]
    return Group(*parts)


def _numbers(before: Mapping[str, Estimated], after: Mapping[str, Estimated]) -> list[RenderableType]:
    rows = compare(before, after)
    if not rows:
        return [Text("No held-out rows, so nothing was measured: set data.eval or data.eval_rows.")]
    title = ": ".join(filter(None, ["Held out, with 95 % intervals", held_out_sizes(rows)]))
    table = Table(title=Text(title), title_justify="left")
    for header in ("", "before", "after"):
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(Text(row.label), row.before, row.after)
    changes = [Text(f"{row.label} changed by {row.change}") for row in rows if row.is_headline and row.change]
    reliability = [part for when, found in (("before", before), ("after", after)) for part in _reliability(found, when)]
    return [table, *changes, *reliability]


def _reliability(estimates: Mapping[str, Estimated], when: str) -> list[RenderableType]:
    """Of a reward model: how often it is right among pairs that it is equally sure of, as bars."""
    tables: list[RenderableType] = []
    for name, bins in reliability_bins(estimates).items():
        table = Table(box=None, padding=(0, 2, 0, 0))
        for header in ("sure", "pairs", "right", ""):
            table.add_column(header)
        for row in bins:
            table.add_row(f"{row.sure} %", f"{row.weight:g}", row.right, row.bar)
        tables += [Text(f"{name}, {when}: how sure it is of a pair, and how often right"), table]
    return tables


def _samples(samples: Sequence[Sample]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for sample in samples:
        table = Table(expand=True, show_lines=False, box=None, padding=(0, 2, 0, 0))
        table.add_column("before", ratio=1, overflow="fold")
        table.add_column("after", ratio=1, overflow="fold")
        table.add_row(_answer(sample.before), _answer(sample.after))
        parts.append(Panel(table, title=_title(sample.prompt), title_align="left"))
    return parts


def answers_table(found: EvalAnswers, title: str, *, num_shown: int = 3) -> RenderableType:
    """The first answers of an evaluation, beside those that a judge compared them with."""
    parts: list[RenderableType] = [Text(f"step {found.step} · {visible(title)}")]
    for answer in found.answers[:num_shown]:
        table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
        cells = [_answer(Answer(answer.completion, answer.is_cut))]
        table.add_column(
            "policy" if answer.score is None else f"policy, score {answer.score:g}", ratio=1, overflow="fold"
        )
        if answer.compared_with is not None:
            table.add_column("compared with", ratio=1, overflow="fold")
            cells.append(_answer(Answer(answer.compared_with, is_cut=False)))
        table.add_row(*cells)
        parts.append(Panel(table, title=_title(answer.prompt), title_align="left"))
    return Group(*parts)


def _title(prompt: str, *, length: int = 200) -> Text:
    text = " ".join(visible(prompt).split())
    return Text(text if len(text) <= length else f"{text[:length]}…")


def _answer(answer: Answer | None) -> Text:
    if answer is None:
        return Text("not known", style="dim")
    text = Text(visible(answer.text).strip() or "(empty)")
    return text.append(" … (cut)", style="dim") if answer.is_cut else text
