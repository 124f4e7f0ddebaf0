"""Whether two arms computed the same thing, and what their measurements come to. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GATE = 1e-4
WARM_UP = 1
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """A library, the interpreter that has it, the script that runs it, and what its job has beside the common."""

    name: str
    python: str
    script: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """A quantity of the first step as two arms computed it; of several numbers, those that differ most."""

    quantity: str
    peer: float
    ours: float
    relative: float


@dataclass(frozen=True)
class Spread:
    """The median of one number a process, and its range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Summary:
    """An arm's processes.

    Attributes:
        seconds: of a step: the median over the timed steps of each process.
        tokens_per_second: useful tokens over all timed steps of each process.
        peak_bytes: largest resident memory in training, or None where it could not be reset after loading.
        page_faults: of a step, as `seconds`.
        cores: CPU seconds a second of wall clock; less than the threads if the machine was not quiet.
        ratio: seconds of TRL over seconds of this arm, round by round.
        memory_ratio: the same for the peak.
    """

    arm: str
    seconds: Spread
    tokens_per_second: Spread
    peak_bytes: Spread | None
    page_faults: Spread
    cores: Spread
    ratio: Spread
    memory_ratio: Spread | None


def other_tokens(peer: Result, ours: Result) -> list[int]:
    """The steps, counted from 1, in which the two trained on different tokens. Sampled answers have no digest."""
    pairs = zip(peer["steps"], ours["steps"], strict=True)
    return [number for number, (a, b) in enumerate(pairs, start=1) if a.get("digest") != b.get("digest")]


def differences(peer: Result, ours: Result, quantities: Sequence[str]) -> list[Difference]:
    """Quantities of the first step, compared. A number that is not finite differs infinitely from any other."""
    theirs, own = peer["first_step"], ours["first_step"]
    return [_difference(name, _as_list(theirs[name]), _as_list(own[name])) for name in quantities]


def _difference(quantity: str, peer: Sequence[float], ours: Sequence[float]) -> Difference:
    pairs = [(_relative(a, b), a, b) for a, b in zip(peer, ours, strict=True)]
    relative, a, b = max(pairs)
    return Difference(quantity, a, b, relative)


def _relative(a: float, b: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def _as_list(value: float | Sequence[float]) -> Sequence[float]:
    return [value] if isinstance(value, int | float) else value


def format_gate(table: Sequence[Difference], *, name: str, judged: bool) -> str:
    """The comparison as text; of the log-probs, the row that differs most."""
    lines = [f"first step         {'TRL':>18} {name:>24} {'relative':>10}"]
    for row in table:
        verdict = "" if not judged else "  equal" if row.relative <= GATE else f"  NOT EQUAL (allowed {GATE:.0e})"
        lines.append(f"{row.quantity:<18} {row.peer:>18.9g} {row.ours:>24.9g} {row.relative:>10.1e}{verdict}")
    return "\n".join(lines)


def summarise(results: Mapping[str, Sequence[Result]]) -> list[Summary]:
    """One summary an arm, in the order of the arms; the first is what the others are compared with."""
    baseline = next(iter(results.values()))
    return [_summarise(name, runs, baseline) for name, runs in results.items()]


def _summarise(name: str, runs: Sequence[Result], baseline: Sequence[Result]) -> Summary:
    has_peak = all(run["peak_bytes"] for run in [*runs, *baseline])
    pairs = list(zip(baseline, runs, strict=True))
    return Summary(
        arm=name,
        seconds=Spread.of([_per_step(run, "seconds") for run in runs]),
        tokens_per_second=Spread.of([_tokens_per_second(run) for run in runs]),
        peak_bytes=Spread.of([run["peak_bytes"] for run in runs]) if has_peak else None,
        page_faults=Spread.of([_per_step(run, "page_faults") for run in runs]),
        cores=Spread.of([sum(_timed(run, "cpu_seconds")) / sum(_timed(run, "seconds")) for run in runs]),
        ratio=Spread.of([_per_step(peer, "seconds") / _per_step(run, "seconds") for peer, run in pairs]),
        memory_ratio=Spread.of([p["peak_bytes"] / r["peak_bytes"] for p, r in pairs]) if has_peak else None,
    )


def _timed(run: Result, name: str) -> Sequence[Any]:
    return run[name][WARM_UP:]


def _per_step(run: Result, name: str) -> float:
    return statistics.median(_timed(run, name))


def _tokens_per_second(run: Result) -> float:
    return sum(step["useful_tokens"] for step in _timed(run, "steps")) / sum(_timed(run, "seconds"))
