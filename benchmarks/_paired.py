"""One comparison: both libraries on the same inputs, in turn, each in a process of its own, behind the gate.

Standard library only. A `Case` says what is compared; `compare` runs it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _compare import GATE, differences, format_gate, other_tokens
from _methods import METHODS
from _processes import Arm, num_cores, peer_python, run_arm, run_prepare, say

PEER, PEER_TUNED, PEER_CHECKPOINTED = "TRL", "TRL, tuned", "TRL, gradient checkpointing"
OURS, OURS_UNTUNED = "Burnish", "Burnish, cpu_tuning off"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared.

    Attributes:
        method: a key of `METHODS`.
        data: rows of preferences, or of questions; None for the package's own.
        options: of the method; the others have its defaults.
        steps: timed ones, after one to warm up.
        rounds: processes of each arm.
        model: its weights are loaded; with `geometry`, entries of its configuration, random ones are made.
        gate: whether it is asserted that both compute the same.
    """

    method: str
    data: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    precision: str = "float32"
    steps: int = 5
    rounds: int = 1
    threads: int = field(default_factory=num_cores)
    seed: int = 0
    model: str = "smollm2-135m"
    geometry: Mapping[str, Any] | None = None
    gate: bool = True

    def job(self) -> dict[str, Any]:
        """What every process of it is told."""
        method = METHODS[self.method]
        if unknown := self.options.keys() - method.options.keys():
            raise ValueError(f"unknown options of {self.method}: {sorted(unknown)}; known: {sorted(method.options)}")
        return {
            **method.options,
            **self.options,
            "model": self.model,
            "geometry": self.geometry,
            "data": self.data or method.data,
            "num_steps": self.steps + 1,
            "precision": self.precision,
            "threads": self.threads,
            "seed": self.seed,
            "gate": self.gate,
            "frozen_step": False,
        }


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        first_steps: arm -> what it computed in the step that is compared; empty without a gate.
        processes: arm -> the result of each of its processes, TRL first.
    """

    case: Case
    first_steps: Mapping[str, Mapping[str, Any]]
    processes: Mapping[str, Sequence[Mapping[str, Any]]]


class NotEqualError(RuntimeError):
    """Two libraries did not compute the same, so that their times say nothing."""


def make_arms(
    method: str,
    *,
    given_python: str | None = None,
    peer: bool = True,
    peer_tuned: bool = False,
    peer_checkpointed: bool = False,
    untuned: bool = False,
) -> list[Arm]:
    """TRL first, also with Burnish's CPU settings and with gradient checkpointing; then Burnish, also without them."""
    tuned, plain = {"tuned": True}, {"tuned": False}
    theirs = [(PEER, plain)] * peer + [(PEER_TUNED, tuned)] * peer_tuned
    theirs += [(PEER_CHECKPOINTED, {**plain, "gradient_checkpointing": True})] * peer_checkpointed
    python = peer_python(given_python, METHODS[method].peer) if theirs else ""
    ours = [(OURS, "auto")] + [(OURS_UNTUNED, "off")] * untuned
    return [
        *(Arm(name, python, f"{method}_trl.py", options) for name, options in theirs),
        *(Arm(name, sys.executable, f"{method}_burnish.py", {"cpu_tuning": tuning}) for name, tuning in ours),
    ]


def compare(case: Case, arms: Sequence[Arm]) -> Comparison:
    """Run every arm `rounds` times, in alternating order, so that a machine's drift hits all alike.

    Raises:
        NotEqualError: the arms trained on other tokens, or the first step differs by more than `GATE` in float32.
        ArmFailedError: a process failed.
    """
    method, processes = METHODS[case.method], {arm.name: list[dict[str, Any]]() for arm in arms}
    first_steps: dict[str, Mapping[str, Any]] = {}
    gate = case.gate and len(arms) > 1
    with tempfile.TemporaryDirectory(prefix="burnish-benchmark-") as name:
        folder = Path(name)
        job = run_prepare(f"{case.method}_prepare.py", {**case.job(), "gate": gate}, folder, threads=case.threads)
        if gate and method.frozen_gate:
            for arm in arms:
                say(f"gate: {arm.name} …")
                first_steps[arm.name] = run_arm(arm, {**job, "frozen_step": True}, folder)["first_step"]
            judge(first_steps, method.quantities, precision=case.precision)
        for number in range(case.rounds):
            for arm in arms if number % 2 == 0 else reversed(arms):
                say(f"round {number + 1} of {case.rounds}: {arm.name} …")
                processes[arm.name].append(run_arm(arm, job, folder))
            check_tokens(processes)
            if gate and not first_steps:
                first_steps = {arm.name: processes[arm.name][-1]["first_step"] for arm in arms}
                judge(first_steps, method.quantities, precision=case.precision)
    return Comparison(case, first_steps, processes)


def check_tokens(processes: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Every arm trained on the tokens of the first one, step by step."""
    baseline, *others = processes
    for name in others:
        if steps := other_tokens(processes[baseline][-1], processes[name][-1]):
            raise NotEqualError(f"{name} trained on other tokens than {baseline} in steps {steps}")


def judge(first_steps: Mapping[str, Mapping[str, Any]], quantities: Sequence[str], *, precision: str) -> None:
    """Print how far each arm is from the first one; in float32 that has to be little, in bfloat16 it is shown."""
    (baseline, theirs), *others = first_steps.items()
    judged, failed = precision == "float32", list[str]()
    for name, own in others:
        table = differences(theirs, own, quantities)
        print(format_gate(table, baseline=baseline, name=name, judged=judged), flush=True)
        failed += [f"{name}: {row.quantity}" for row in table if judged and row.relative > GATE]
    if failed:
        raise NotEqualError(f"the first step differs from {baseline}'s: {'; '.join(failed)}")
