"""The page and the picture of `time_to_reward.py`. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from _paired import OURS, PEER, PEER_TUNED
from _record import markdown_table
from _rewards import Run, first_step_at, median_steps
from _svg import Chart, Line, grid

MEASURES = {"sampled": "sampled at temperature 1", "greedy": "greedy"}


def page(record: Mapping[str, Any], runs: Sequence[Run], targets: Sequence[float]) -> str:
    """Everything that was measured, as Markdown."""
    settings = record["settings"]
    medians = {arm: statistics.median(values) for arm, values in record["seconds_a_step"].items()}
    return "\n".join(
        [
            f"# Time to reward: the GRPO recipe, {record['date']}",
            "",
            f"`{record['command']}` (commit {record['commit']})",
            "",
            f"`recipe:grpo` for {settings['max_steps']} steps of 8 prompts x 8 answers of at most 16 tokens, learning "
            f"rate {settings['learning_rate']:g}, beta 0; {settings['threads']} threads. The weights after every "
            f"{settings['every']} steps answer {settings['eval_rows']} held-out prompts, the same code and the same "
            "random numbers for both libraries.",
            "",
            "Steps to an accuracy (the first evaluation that has it), times median seconds a step. The steps are the "
            "median over Burnish's seeds, for both libraries: they train the same way.",
            "",
            products(runs, medians, targets),
            "",
            "Seconds a step, in turn, 64 answers of exactly 16 tokens: "
            + "; ".join(f"{arm} {' '.join(f'{value:.2f}' for value in values)}"
                        for arm, values in record["seconds_a_step"].items())
            + ".",
            "",
            "The full runs, each by its own clock, without evaluation: steps and minutes to an accuracy.",
            "",
            full_runs(runs, targets),
            "",
            *(line for measure in MEASURES for line in (f"Right answers, {MEASURES[measure]}:", "",
                                                        curves(runs, measure), "")),
            f"Machine: {record['machine']['summary']}; {record['machine']['system']}.",
        ]
    )  # fmt: skip


def products(runs: Sequence[Run], medians: Mapping[str, float], targets: Sequence[float]) -> str:
    """Steps x seconds a step of each library, and TRL's over Burnish's."""
    ours = [run for run in runs if run.name.startswith(OURS)]
    baselines = [arm for arm in (PEER, PEER_TUNED) if arm in medians]
    rows = []
    for measure in MEASURES:
        for target in targets:
            steps = median_steps(ours, measure, target)
            rows.append(
                [
                    f"{target:.2f} {measure}",
                    shown_steps(steps),
                    *(shown_minutes(steps * seconds / 60) for seconds in medians.values()),
                    *(f"{medians[arm] / medians[OURS]:.2f}" for arm in baselines),
                ]
            )
    header = ["accuracy", "steps", *(f"{arm}, min" for arm in medians), *(f"{arm} / {OURS}" for arm in baselines)]
    return markdown_table(header, rows)


def full_runs(runs: Sequence[Run], targets: Sequence[float]) -> str:
    """What each run needed by itself."""
    header = ["run", "seconds a step", *(f"{target:.2f} {measure}" for measure in MEASURES for target in targets)]
    rows = []
    for run in runs:
        cells = []
        for measure in MEASURES:
            for target in targets:
                step = first_step_at(run, measure, target)
                known = step is not None and len(run.seconds) > 0
                minutes = f", {run.minutes(step or 0):.1f} min" if known else ""
                cells.append("not reached" if step is None else f"step {step}{minutes}")
        seconds = f"{statistics.median(run.seconds):.2f}" if run.seconds else "not measured"
        rows.append([run.name, seconds, *cells])
    return markdown_table(header, rows)


def curves(runs: Sequence[Run], measure: str) -> str:
    """Accuracy at each evaluation, with its 95 % interval where it is known."""
    steps = sorted({step for run in runs for step in run.curve})
    rows = [[run.name, *(shown_share(run.curve.get(step, {}).get(measure)) for step in steps)] for run in runs]
    return markdown_table(["run", *(f"step {step}" for step in steps)], rows)


def figure(runs: Sequence[Run]) -> str:
    """Accuracy against training time for the runs with a clock, and against steps for all."""
    charts = []
    for measure, words in MEASURES.items():
        by_step = [Line(run.name, [(step, run.curve[step][measure][0]) for step in sorted(run.curve)]) for run in runs]
        by_time = [
            Line(run.name, [(run.minutes(step), run.curve[step][measure][0]) for step in sorted(run.curve)])
            for run in runs
            if run.seconds
        ]
        charts.append(Chart(f"Held-out accuracy, {words}", "optimizer steps", "share right", by_step))
        charts.append(Chart(f"Held-out accuracy, {words}", "minutes of training", "share right", by_time))
    return grid(charts)


def shown_steps(steps: float) -> str:
    """A number of steps, if it is one."""
    return "not reached" if math.isinf(steps) else f"{steps:g}"


def shown_minutes(minutes: float) -> str:
    """Minutes, if they are finite."""
    return "-" if math.isinf(minutes) else f"{minutes:.1f}"


def shown_share(found: Sequence[float] | None) -> str:
    """A share with the ends of its interval, as far as they are known."""
    if found is None:
        return "-"
    mean, *ends = found
    return f"{mean:.3f} ({ends[0]:.3f}–{ends[1]:.3f})" if ends else f"{mean:.3f}"
