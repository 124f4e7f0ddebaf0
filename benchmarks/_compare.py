"""Whether two arms computed the same thing, and what their measurements come to. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GATE = 1e-4
AROUND_ZERO = ("tokens/", "scores/")  # one for each token of a rollout; of chosen and rejected answers
WARM_UP = 1
Result = Mapping[str, Any]


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
        seconds: of a step: the mean over the timed steps of each process, whose sizes may differ.
        tokens_per_second: useful tokens over all timed steps of each process.
        peak_bytes: largest resident memory in training, or None where it could not be reset after loading.
        above_bytes: the same less what was resident when the models were loaded: gradients, optimizer, everything else.
        page_faults: of a step, as `seconds`.
        cores: CPU seconds a second of wall clock; less than the threads if the machine was not quiet.
        speedups: baseline -> its seconds over those of this arm, round by round.
        above_share: `above_bytes` of this arm over those of the first one, round by round.
    """

    arm: str
    seconds: Spread
    tokens_per_second: Spread
    peak_bytes: Spread | None
    above_bytes: Spread | None
    page_faults: Spread
    cores: Spread
    speedups: Mapping[str, Spread]
    above_share: Spread | None


def other_tokens(peer: Result, ours: Result) -> list[int]:
    """The steps, counted from 1, in which the two trained on different tokens. Sampled answers have no digest."""
    pairs = zip(peer["steps"], ours["steps"], strict=True)
    return [number for number, (a, b) in enumerate(pairs, start=1) if a.get("digest") != b.get("digest")]


def differences(theirs: Result, own: Result, quantities: Sequence[str]) -> list[Difference]:
    """Quantities of the first step, compared. A number that is not finite differs infinitely from any other.

    A number is held against its own size; of those that may be next to 0 (`AROUND_ZERO`), each against the root mean
    square of all.
    """
    return [_difference(name, _as_list(theirs[name]), _as_list(own[name])) for name in quantities]


def _difference(quantity: str, peer: Sequence[float], ours: Sequence[float]) -> Difference:
    scale = _root_mean_square(peer) if quantity.startswith(AROUND_ZERO) else None
    pairs = [(_relative(a, b, scale), a, b) for a, b in zip(peer, ours, strict=True)]
    relative, a, b = max(pairs)
    return Difference(quantity, a, b, relative)


def _relative(a: float, b: float, scale: float | None = None) -> float:
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    size = max(abs(a), abs(b)) if scale is None else scale
    return abs(a - b) / max(size, 1e-12)


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(value**2 if math.isfinite(value) else 0.0 for value in values))


def _as_list(value: float | Sequence[float]) -> Sequence[float]:
    return [value] if isinstance(value, int | float) else value


def format_gate(table: Sequence[Difference], *, baseline: str, name: str, judged: bool) -> str:
    """The comparison as text; of several numbers, the one that differs most."""
    lines = [f"first step                 {baseline:>18} {name:>24} {'relative':>10}"]
    for row in table:
        verdict = "" if not judged else "  equal" if row.relative <= GATE else f"  NOT EQUAL (allowed {GATE:.0e})"
        lines.append(f"{row.quantity:<26} {row.peer:>18.9g} {row.ours:>24.9g} {row.relative:>10.1e}{verdict}")
    return "\n".join(lines)


def summarise(processes: Mapping[str, Sequence[Result]], *, baselines: Sequence[str]) -> list[Summary]:
    """One summary an arm, in the order of the arms.

    Args:
        processes: arm -> the results of its processes, in the order of the rounds.
        baselines: the arms that the others are compared with in time; memory is compared with the first arm's.
    """
    return [_summarise(name, runs, processes, baselines) for name, runs in processes.items()]


def _summarise(
    name: str, runs: Sequence[Result], processes: Mapping[str, Sequence[Result]], baselines: Sequence[str]
) -> Summary:
    first = next(iter(processes.values()))
    has_peak = all(run["peak_bytes"] and run["loaded_bytes"] for run in [*runs, *first])
    shares = [above_bytes(own) / above_bytes(theirs) for own, theirs in zip(runs, first, strict=True) if has_peak]
    return Summary(
        arm=name,
        seconds=Spread.of([step_mean(run["seconds"]) for run in runs]),
        tokens_per_second=Spread.of([_tokens_per_second(run) for run in runs]),
        peak_bytes=Spread.of([run["peak_bytes"] for run in runs]) if has_peak else None,
        above_bytes=Spread.of([above_bytes(run) for run in runs]) if has_peak else None,
        page_faults=Spread.of([step_mean(run["page_faults"]) for run in runs]),
        cores=Spread.of([sum(timed(run["cpu_seconds"])) / sum(timed(run["seconds"])) for run in runs]),
        speedups={arm: speedup(processes[arm], runs) for arm in baselines},
        above_share=Spread.of(shares) if shares else None,
    )


def speedup(baseline: Sequence[Result], runs: Sequence[Result], phase: str | None = None) -> Spread:
    """Seconds of a step, or of a phase of it, of the baseline over those of an arm, round by round."""
    pairs = zip(baseline, runs, strict=True)
    return Spread.of([_seconds(theirs, phase) / max(_seconds(own, phase), 1e-9) for theirs, own in pairs])


def _seconds(run: Result, phase: str | None) -> float:
    return step_mean(run["seconds"] if phase is None else run["phases"][phase])


def above_bytes(run: Result) -> int:
    """Peak memory above the loaded models."""
    return run["peak_bytes"] - run["loaded_bytes"]


def timed(values: Sequence[Any]) -> Sequence[Any]:
    """One value a step, without those to warm up."""
    return values[WARM_UP:]


def step_mean(values: Sequence[float]) -> float:
    """The mean over the timed steps: what a run waits, where steps have rows of other lengths."""
    return statistics.mean(timed(values))


def _tokens_per_second(run: Result) -> float:
    return sum(step["useful_tokens"] for step in timed(run["steps"])) / sum(timed(run["seconds"]))
