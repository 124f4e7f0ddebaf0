"""A comparison as tables and as a page of `results/`. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from _compare import GATE, Spread, Summary, differences, step_mean, summarise, timed
from _methods import METHODS
from _paired import PEER, PEER_TUNED, Case, Comparison
from _record import file_name, markdown_table, new_record

HEADER = (
    "arm",
    "seconds a step",
    "useful tokens/s",
    "peak memory, GB",
    "above the models, GB",
    "page faults a step",
    "cores busy",
)


def summaries(comparison: Comparison) -> list[Summary]:
    """One an arm, compared with TRL as it comes and, where it ran, TRL with Burnish's CPU settings."""
    baselines = [name for name in (PEER, PEER_TUNED) if name in comparison.processes]
    return summarise(comparison.processes, baselines=baselines)


def format_table(rows: Sequence[Summary]) -> str:
    """The median over the processes, and their range."""
    ratios = [f"{baseline} / arm: time" for baseline in rows[0].speedups]
    return markdown_table([*HEADER, *ratios, f"arm / {rows[0].arm}: memory above"], [_cells(row) for row in rows])


def _cells(row: Summary) -> list[str]:
    return [
        row.arm,
        show(row.seconds, ".2f"),
        show(row.tokens_per_second, ".0f"),
        show(row.peak_bytes, ".2f", scale=1e-9),
        show(row.above_bytes, ".2f", scale=1e-9),
        show(row.page_faults, ",.0f"),
        show(row.cores, ".2f"),
        *(show(ratio, ".2f") for ratio in row.speedups.values()),
        show(row.above_share, ".2f"),
    ]


def show(spread: Spread | None, form: str, *, scale: float = 1.0) -> str:
    """The median and, if there is more than one number, the range."""
    if spread is None:
        return "not available"
    median, low, high = (format(value * scale, form) for value in (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low}–{high})"


def format_phases(processes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Seconds of each phase of a step, as those of the whole step, and the first arm's over them."""
    names = list(next(iter(processes.values()))[0]["phases"])
    medians = {
        arm: {n: statistics.median([step_mean(run["phases"][n]) for run in runs]) for n in names}
        for arm, runs in processes.items()
    }
    baseline, peer = next(iter(medians.items()))
    rows = [
        [
            arm,
            *(f"{own[n]:.2f}" for n in names),
            f"{_drawn_per_second(processes[arm]):.0f}",
            *(f"{peer[n] / max(own[n], 1e-9):.2f}" for n in names),
        ]
        for arm, own in medians.items()
    ]
    ratios = [f"{baseline} / arm: {n}" for n in names]
    return markdown_table(["arm", *(f"{n}, s" for n in names), "drawn tokens/s", *ratios], rows)


def _drawn_per_second(runs: Sequence[Mapping[str, Any]]) -> float:
    drawn = sum(step["drawn_tokens"] for run in runs for step in timed(run["steps"]))
    return drawn / sum(seconds for run in runs for seconds in timed(run["phases"]["generate"]))


def page(comparison: Comparison, machine: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
    """Name, record and text of a comparison for `results/`."""
    case = comparison.case
    rows = summaries(comparison)
    settings = {**asdict(case), "data": data_of(case), "options": options_of(case)}
    record = new_record(
        machine,
        settings=settings,
        summary=[asdict(row) for row in rows],
        first_steps=comparison.first_steps,
        processes=comparison.processes,
    )
    return file_stem(case), record, _text(comparison, record, rows)


def file_stem(case: Case) -> str:
    """What distinguishes it from the others of a day."""
    options = options_of(case)
    data = data_of(case).removeprefix("recipe:").split(".", 1)[0]
    exact = "-".join(str(options[key]) for key in ("prompt_tokens", "answer_tokens") if options.get(key))
    cached = "cached" if options.get("reference") == "cached" else ""
    return "-".join(part for part in ("vs-trl", case.method, case.precision, exact or data, cached) if part)


def options_of(case: Case) -> dict[str, Any]:
    """All options of the method, as they were."""
    return {**METHODS[case.method].options, **case.options}


def data_of(case: Case) -> str:
    """The name of its rows."""
    return file_name(case.data or METHODS[case.method].data)


def _text(comparison: Comparison, record: Mapping[str, Any], rows: Sequence[Summary]) -> str:
    case, processes = comparison.case, comparison.processes
    method = METHODS[case.method]
    has_phases = "phases" in next(iter(processes.values()))[0]
    judged = f"at most {GATE:.0e} is allowed" if case.precision == "float32" else "shown, not judged"
    lines = [
        f"# Burnish beside TRL: {method.title}, {case.precision}, {record['date']}",
        "",
        f"`{record['command']}` (commit {record['commit']})",
        "",
        f"{data_of(case)}, {method.describe(options_of(case))}; one step to warm up, then {case.steps} timed; "
        f"{case.rounds} processes an arm in alternating order; {case.threads} threads; the allocator as the "
        "system has it, but for what an arm sets itself. Mean over the steps; of the processes median and range:",
        "",
        format_table(rows),
        "",
        *(["Seconds of each phase:", "", format_phases(processes), ""] if has_phases else []),
        f"The step that is compared. Relative difference: {judged}; of several numbers, the one that differs most.",
        "",
        _gate_table(comparison),
        "",
        "Seconds of every step, the first to warm up:",
        "",
        _step_table(processes),
        "",
        f"Machine: {record['machine']['summary']}; {record['machine']['system']}.",
        "",
        *version_lines(processes),
    ]
    return "\n".join(lines)


def _gate_table(comparison: Comparison) -> str:
    (baseline, theirs), *others = comparison.first_steps.items()
    rows = [
        [arm, row.quantity, f"{row.peer:.9g}", f"{row.ours:.9g}", f"{row.relative:.1e}"]
        for arm, own in others
        for row in differences(theirs, own, METHODS[comparison.case.method].quantities)
    ]
    return markdown_table(["arm", "quantity", baseline, "arm", "difference"], rows)


def _step_table(processes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = [
        [arm, str(number), " ".join(f"{value:.2f}" for value in run["seconds"])]
        for arm, runs in processes.items()
        for number, run in enumerate(runs, start=1)
    ]
    return markdown_table(["arm", "process", "seconds"], rows)


def version_lines(processes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The versions of each arm, and how it multiplied."""
    lines = []
    for arm, runs in processes.items():
        versions = ", ".join(f"{package} {number}" for package, number in runs[0]["versions"].items())
        precisions = ", ".join(sorted({run["matmul_precision"] for run in runs}))
        lines.append(f"- {arm}: {versions}; float32 matrix products at precision {precisions}")
    return lines
