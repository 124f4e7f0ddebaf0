"""The page of `table.py`. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _paired import Comparison
from _record import markdown_table
from _report import format_phases, format_table, summaries
from _table_rows import Outcome, Row

VERDICTS = {(True, True): "aim", (True, False): "floor", (False, False): "**below the floor**"}


def page(
    record: Mapping[str, Any],
    rows: Sequence[Row],
    outcomes: Mapping[str, Outcome],
    comparisons: Mapping[str, Comparison],
    shares: Mapping[str, float],
    profiles: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """Everything that was measured, as Markdown."""
    settings = record["settings"]
    parts = [
        f"# Burnish beside TRL 1.16: what it must reach, {record['date']}",
        "",
        f"`{record['command']}` (commit {record['commit']})",
        "",
        f"SmolLM2-135M, {settings['threads']} threads; one step to warm up, then {settings['steps']} timed, in "
        f"{settings['rounds']} processes an arm, in turn; means of steps, medians of processes. Speed: TRL's seconds "
        "over Burnish's, TRL as it comes (without gradient checkpointing) / with what Burnish sets on the CPU. Memory: "
        "Burnish's over TRL's.",
        "",
        format_rows(rows, outcomes),
        "",
        "Share of a Burnish step (of the update, where there is a rollout) that its matrix products would take at the "
        "best speed measured here; aims: 0.55 in float32 and 0.4 in bf16 for DPO:",
        "",
        markdown_table(["case", "share"], [[name, f"{share:.2f}"] for name, share in shares.items()]),
        "",
    ]
    for name, comparison in comparisons.items():
        parts += [f"## {name}", "", format_table(summaries(comparison)), ""]
        if "phases" in next(iter(comparison.processes.values()))[0]:
            parts += [format_phases(comparison.processes), ""]
        if name in profiles:
            parts += ["Below a floor; what one step of Burnish spends its time on:", "", _profile(profiles[name]), ""]
    return "\n".join([*parts, f"Machine: {record['machine']['summary']}; {record['machine']['system']}."])


def format_rows(rows: Sequence[Row], outcomes: Mapping[str, Outcome]) -> str:
    """The table itself."""
    cells = []
    for row in rows:
        outcome = outcomes[row.name]
        values = (outcome.stock, outcome.tuned)[: len(row.floor)]
        shown = " / ".join("-" if value is None else f"{value:.2f}" for value in values)
        cells.append([row.work, _bounds(row.floor), _bounds(row.aim), outcome.problem or shown, verdict(row, outcome)])
    return markdown_table(["work", "floor", "aim", "measured", "reaches"], cells)


def verdict(row: Row, outcome: Outcome) -> str:
    """Which bound an outcome keeps."""
    floor, aim = row.reaches(outcome, row.floor), row.reaches(outcome, row.aim)
    return "not measured" if floor is None or aim is None else VERDICTS[floor, aim and floor]


def _bounds(values: Sequence[float]) -> str:
    return " / ".join(f"{value:g}" for value in values)


def _profile(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [[r["operation"], f"{r['seconds']:.3f}", f"{r['share']:.0%}", str(r["calls"])] for r in rows]
    return markdown_table(["operation", "own seconds", "share", "calls"], cells)
