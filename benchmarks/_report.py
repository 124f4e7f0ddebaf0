"""The measurements as a table, and as the dated files in `results/`. Standard library only."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _compare import GATE, WARM_UP, Spread, Summary, differences

HEADER = ("arm", "seconds a step", "useful tokens/s", "peak memory, GB", "page faults a step", "cores busy")
RATIOS = ("TRL / arm: time", "TRL / arm: memory")
Processes = Mapping[str, Sequence[Mapping[str, Any]]]


def format_table(rows: Sequence[Summary]) -> str:
    """Markdown: the median over the processes, and their range."""
    lines = ["| " + " | ".join((*HEADER, *RATIOS)) + " |", "|---" * (len(HEADER) + len(RATIOS)) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)])


def format_phases(results: Processes) -> str:
    """Markdown: median seconds of each phase of a step over all timed steps of all processes, and the peer's share."""
    names = list(next(iter(results.values()))[0]["phases"])
    medians = {
        arm: {n: statistics.median([s for run in runs for s in run["phases"][n][WARM_UP:]]) for n in names}
        for arm, runs in results.items()
    }
    peer = next(iter(medians.values()))
    lines = [
        "| arm | " + " | ".join(f"{n}, s" for n in names) + " | " + " | ".join(f"TRL / arm: {n}" for n in names) + " |"
    ]
    lines.append("|---" * (1 + 2 * len(names)) + "|")
    for arm, own in medians.items():
        cells = [f"{own[n]:.2f}" for n in names] + [f"{peer[n] / max(own[n], 1e-9):.2f}" for n in names]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Summary) -> list[str]:
    return [
        row.arm,
        _show(row.seconds, ".2f"),
        _show(row.tokens_per_second, ".0f"),
        _show(row.peak_bytes, ".2f", scale=1e-9),
        _show(row.page_faults, ",.0f"),
        _show(row.cores, ".2f"),
        _show(row.ratio, ".2f"),
        _show(row.memory_ratio, ".2f"),
    ]


def _show(spread: Spread | None, form: str, *, scale: float = 1.0) -> str:
    if spread is None:
        return "not available"
    median, low, high = (format(value * scale, form) for value in (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low}–{high})"


def machine_facts() -> dict[str, Any]:
    """What the measurement ran on; read before it starts, so that the load is other people's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    facts = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    summary = f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB, load {facts['load_before']} before"
    return {**facts, "summary": summary}


def _cpu_model() -> str:
    """The model's name and, since virtual machines hide it, family, model and stepping."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    info = {key.strip(): value.strip() for key, value in pairs}
    numbers = ", ".join(f"{key} {info[key]}" for key in ("cpu family", "model", "stepping") if key in info)
    return f"{info.get('model name', platform.machine())} ({numbers})"


def write_results(
    directory: Path,
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    results: Processes,
    rows: Sequence[Summary],
) -> Path:
    """Write DATE-vs-trl-….md and .json; returns the path of the first. Neither names a place on this machine."""
    directory.mkdir(exist_ok=True)
    data = settings["data"].removeprefix("recipe:").split(".", 1)[0]
    malloc = "-malloc-tuned" if settings["malloc_tuned"] else ""
    filled = f"-{settings['prompt_tokens']}" if settings["method"] == "grpo" and settings["prompt_tokens"] else ""
    name = f"{time.strftime('%Y-%m-%d')}-vs-trl-{settings['method']}-{settings['precision']}-{data}{filled}{malloc}"
    shown = {key: value for key, value in settings.items() if key != "peer_python"}
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "command": command_line(),
        "commit": commit(directory),
        "settings": shown,
        "machine": dict(machine),
        "summary": [asdict(row) for row in rows],
        "processes": {arm: list(runs) for arm, runs in results.items()},
    }
    (directory / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path = directory / f"{name}.md"
    path.write_text(_page(record, format_table(rows)), encoding="utf-8")
    return path


def command_line() -> str:
    """The command as it can be typed in any checkout: of a path, only its last part."""
    shown = [Path(part).name if os.sep in part and not part.startswith("-") else part for part in sys.argv[1:]]
    shown = [_without_directory(part) for part in shown]
    return " ".join(["python benchmarks/vs_trl.py", *shown])


def _without_directory(part: str) -> str:
    option, equals, value = part.partition("=")
    return f"{option}={Path(value).name}" if equals and os.sep in value else part


def commit(directory: Path) -> str:
    """The commit that was measured; `-dirty` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _page(record: Mapping[str, Any], table: str) -> str:
    settings, processes = record["settings"], record["processes"]
    tokens = sum(step["useful_tokens"] for step in processes["TRL"][0]["steps"][WARM_UP:])
    judged = f"at most {GATE:.0e} is allowed" if settings["precision"] == "float32" else "shown, not judged"
    method = settings["method"]
    filled = f"filled up to {settings['prompt_tokens']} tokens" if settings.get("prompt_tokens") else "as they are"
    sizes = (
        f"{settings['pairs']} pairs a step, up to {settings['max_length']} tokens"
        if method == "dpo"
        else f"{settings['num_prompts']} prompts x {settings['num_generations']} answers of {settings['new_tokens']} "
        f"tokens a step, prompts {filled}"
    )
    lines = [
        f"# Burnish beside TRL: {settings['method'].upper()}, {settings['precision']}, {record['date']}",
        "",
        f"`{record['command']}` (commit {record['commit']})",
        "",
        f"{settings['data']}, {sizes}; one step to "
        f"warm up, then {settings['steps']} timed with {tokens:,.0f} useful tokens; {settings['rounds']} processes an "
        f"arm in alternating order; {settings['threads']} threads. malloc: {settings['malloc']}.",
        "",
        "Median over the processes, and their range:",
        "",
        table,
        "",
        *(["Median seconds of each phase:", "", format_phases(processes), ""] if method == "grpo" else []),
        f"The first step. Relative difference: {judged}; of log-probs, the row that differs most.",
        "",
        *_gate_table(processes, settings["quantities"]),
        "",
        "Seconds of every step, the first to warm up:",
        "",
        *_step_table(processes),
        "",
        f"Machine: {record['machine']['summary']}; {record['machine']['system']}.",
        "",
        *_versions(processes),
    ]
    return "\n".join(lines) + "\n"


def _gate_table(processes: Processes, quantities: Sequence[str]) -> list[str]:
    rows = [
        f"| {arm} | {row.quantity} | {row.peer:.9g} | {row.ours:.9g} | {row.relative:.1e} |"
        for arm in list(processes)[1:]
        for row in differences(processes["TRL"][0], processes[arm][0], quantities)
    ]
    return ["| arm | quantity | TRL | arm | difference |", "|---|---|---|---|---|", *rows]


def _step_table(processes: Processes) -> list[str]:
    rows = [
        f"| {arm} | {number} | {' '.join(f'{value:.2f}' for value in run['seconds'])} |"
        for arm, runs in processes.items()
        for number, run in enumerate(runs, start=1)
    ]
    return ["| arm | process | seconds |", "|---|---|---|", *rows]


def _versions(processes: Processes) -> list[str]:
    lines = []
    for arm, runs in processes.items():
        versions = ", ".join(f"{package} {number}" for package, number in runs[0]["versions"].items())
        precisions = ", ".join(sorted({run["matmul_precision"] for run in runs}))
        lines.append(f"- {arm}: {versions}; float32 matrix products at precision {precisions}")
    return lines
