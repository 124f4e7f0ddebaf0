"""The rows of the table that `make bench` prints: what is compared, and what it must reach. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from _compare import speedup, summarise, timed
from _paired import OURS, PEER, PEER_TUNED, Case, Comparison

PREFERENCES = "preferences.jsonl"
LONG = {"prompt_tokens": 256, "answer_tokens": 128, "pairs": 2}
GROUPS = {"prompt_tokens": 256, "new_tokens": 64, "num_generations": 8, "num_prompts": 2}
RECIPE = {"num_prompts": 8, "num_generations": 8, "new_tokens": 16, "micro_batch": 16, "beta": 0.0}

CASES = {
    "dpo-live-float32": Case(method="dpo", options=LONG),
    "dpo-live-bfloat16": Case(method="dpo", options=LONG, precision="bfloat16"),
    "dpo-cached-float32": Case(method="dpo", options={**LONG, "reference": "cached"}),
    "dpo-cached-bfloat16": Case(method="dpo", options={**LONG, "reference": "cached"}, precision="bfloat16"),
    "dpo-preferences-float32": Case(method="dpo", data=PREFERENCES, options={"pairs": 2}),
    "dpo-preferences-bfloat16": Case(method="dpo", data=PREFERENCES, options={"pairs": 2}, precision="bfloat16"),
    "grpo-float32": Case(method="grpo", data="recipe:spoken-train", options=GROUPS),
    "recipe-float32": Case(method="grpo", options=RECIPE),
}


@dataclass(frozen=True)
class Outcome:
    """What was measured of a row: a number against TRL as it comes, and one against TRL with Burnish's CPU settings."""

    stock: float | None = None
    tuned: float | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table.

    Attributes:
        name: by which it is run alone.
        work: in words.
        case: a key of `CASES`, or a vocabulary for the head.
        measure: a comparison -> the outcome; None for the head.
        floor, aim: against stock, against tuned; one number where there is one.
        at_most: smaller is better.
    """

    name: str
    work: str
    case: str | int
    measure: Callable[[Comparison], Outcome] | None
    floor: tuple[float, ...]
    aim: tuple[float, ...]
    at_most: bool = False

    def reaches(self, outcome: Outcome, bounds: tuple[float, ...]) -> bool | None:
        """Whether all bounds are kept; None if something was not measured."""
        values = (outcome.stock, outcome.tuned)[: len(bounds)]
        if any(value is None for value in values):
            return None
        pairs = zip(values, bounds, strict=True)
        return all(value is not None and (value <= bound if self.at_most else value >= bound) for value, bound in pairs)


def whole_step(comparison: Comparison) -> Outcome:
    """How many times faster a step is."""
    return _speedups(comparison, None)


def phase_of_step(phase: str) -> Callable[[Comparison], Outcome]:
    """How many times faster a phase of a step is."""
    return lambda comparison: _speedups(comparison, phase)


def _speedups(comparison: Comparison, phase: str | None) -> Outcome:
    processes = comparison.processes
    stock, tuned = (
        speedup(processes[name], processes[OURS], phase).median if name in processes else None
        for name in (PEER, PEER_TUNED)
    )
    return Outcome(stock, tuned)


def memory_above(comparison: Comparison) -> Outcome:
    """Peak memory above the loaded models, Burnish's over TRL's."""
    ours = next(row for row in summarise(comparison.processes, baselines=[PEER]) if row.arm == OURS)
    if ours.above_share is None:
        return Outcome(problem="this system does not tell the peak of memory")
    return Outcome(ours.above_share.median)


def _speed(name: str, work: str, floor: tuple[float, ...], aim: tuple[float, ...], **other: Any) -> Row:
    """A row of ratios of seconds; its case is that of its name, unless it is named."""
    options = {"case": name, "measure": whole_step, **other}
    return Row(name=name, work=work, floor=floor, aim=aim, **options)


def _memory(name: str, work: str, case: str) -> Row:
    measured = {"case": case, "measure": memory_above, "at_most": True}
    return Row(name=name, work=f"peak memory above the loaded models, {work}", floor=(0.4,), aim=(0.25,), **measured)


def _head(vocabulary: int) -> Row:
    name, work = f"head-{vocabulary // 1000}k", f"scratch of the head, vocabulary {vocabulary:,}"
    return Row(name=name, work=work, case=vocabulary, measure=None, floor=(0.1,), aim=(0.05,), at_most=True)


ROWS = (
    _speed("dpo-live-float32", "DPO step, prompt 256, answers 128, float32, reference live", (3, 1.8), (4, 2.5)),
    _speed("dpo-live-bfloat16", "the same, bf16", (3, 1.8), (4, 2.5)),
    _speed("dpo-cached-float32", "DPO step, reference cached on both sides, float32", (3, 1.7), (4, 2.5)),
    _speed("dpo-cached-bfloat16", "the same, bf16", (3, 1.7), (4, 2.5)),
    _speed("dpo-preferences-float32", "DPO, short prompts and long answers, float32", (2, 1.3), (3, 2)),
    _speed("dpo-preferences-bfloat16", "the same, bf16", (2, 1.3), (3, 2)),
    _speed(
        "grpo-update",
        "GRPO update, 8 answers of 64 on prompts of 256",
        (5, 3),
        (8, 4),
        case="grpo-float32",
        measure=phase_of_step("update"),
    ),
    _speed(
        "grpo-rollout",
        "its rollout, tokens a second",
        (3, 2),
        (5, 3.5),
        case="grpo-float32",
        measure=phase_of_step("generate"),
    ),
    _speed("grpo-step", "whole GRPO step", (4, 2.5), (6, 3.5), case="grpo-float32"),
    _memory("memory-dpo", "DPO", "dpo-live-float32"),
    _memory("memory-grpo", "GRPO", "grpo-float32"),
    *(_head(vocabulary) for vocabulary in (49_152, 151_936, 262_144)),
    _speed("time-to-reward", "time to reward: a step of the GRPO recipe", (3,), (5,), case="recipe-float32"),
)


def product_seconds(comparison: Comparison, roof: Mapping[str, Any]) -> float:
    """Seconds that the matrix products of a Burnish step take at the machine's best speed.

    Each token once: forward, gradient of inputs and of weights in the trunk; the same in the head for answers' tokens;
    a forward of both for a live reference. A rollout is not in it.
    """
    options = comparison.case.job()
    run = comparison.processes[OURS][0]
    steps = timed(run["steps"])
    trunk = statistics.median(step["useful_tokens"] for step in steps)
    head = statistics.median(step.get("trained_tokens", step.get("drawn_tokens", 0)) for step in steps)
    trained = trunk * sum(roof["trunk"].values()) + head * sum(roof["head"].values())
    has_reference = options.get("reference") == "live" or bool(options.get("beta"))
    scored = trunk * roof["trunk"]["forward"] + head * roof["head"]["forward"]
    return trained + scored * has_reference


def product_share(comparison: Comparison, roof: Mapping[str, Any]) -> float:
    """The share of a Burnish step, without its rollout, that these products would take."""
    run = comparison.processes[OURS][0]
    spent = run["phases"]["update"] if "phases" in run else run["seconds"]
    return product_seconds(comparison, roof) / statistics.median(timed(spent))
