"""Rollouts alone: Burnish's engine beside `generate` of transformers as TRL 1.16 calls it, in turn, and the roof.

The peer runs twice: as it comes, and with what Burnish's `runtime/cpu.py` sets. First it is asserted that the log-probs
which the engine gives are those of a plain forward. Then: seconds of a rollout, tokens a second, ratios of paired
processes, and what share of a step reading the weights, or multiplying by them, would take at this machine's best.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _commands import deliver, make_parser, positive
from _compare import Spread
from _paired import OURS, NotEqualError
from _processes import Arm, ArmFailedError, run_arm, run_prepare, say
from _record import machine_facts, markdown_table, new_record
from _report import show, version_lines

PEER, PEER_TUNED = "transformers", "transformers, tuned"
ARMS = (
    Arm(PEER, sys.executable, "rollout_transformers.py", {"tuned": False}),
    Arm(PEER_TUNED, sys.executable, "rollout_transformers.py", {"tuned": True}),
    Arm(OURS, sys.executable, "rollout_burnish.py", {"tuned": True}),
)
SIZES = ("2x8x64x256", "2x8x64x40", "8x8x16x45")
STEP_ROWS = (8, 32)
LARGEST_GAP = 1e-3  # nats, in float32
Results = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Size:
    """Prompts, answers to each, tokens of each answer and of each prompt."""

    num_prompts: int
    num_generations: int
    new_tokens: int
    prompt_tokens: int

    @classmethod
    def of(cls, text: str) -> Size:
        """From the command line, as 2x8x64x256."""
        numbers = [positive(part) for part in text.split("x")]
        if len(numbers) != 4:
            raise argparse.ArgumentTypeError(f"{text}: four numbers are needed, as 2x8x64x256")
        return cls(*numbers)

    def __str__(self) -> str:
        return (
            f"{self.num_prompts} prompts of {self.prompt_tokens} tokens x {self.num_generations} answers of "
            f"{self.new_tokens}"
        )


def measure(size: Size, args: argparse.Namespace) -> tuple[Results, Mapping[str, Any]]:
    """The processes of every arm, and the machine's roof.

    Raises:
        NotEqualError: the engine's log-probs are not those of a plain forward.
        ArmFailedError: a process failed.
    """
    job = {
        **vars(size),
        "model": "smollm2-135m",
        "geometry": None,
        "data": "recipe:sums-train",
        "precision": args.precision,
        "num_steps": args.steps + 1,
        "step_rows": STEP_ROWS,
        "threads": args.threads,
        "seed": 0,
        "profile": args.profile,
        "engine": dict(option.split("=", 1) for option in args.engine),
    }
    results: dict[str, list[Mapping[str, Any]]] = {arm.name: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(prefix="burnish-benchmark-") as name:
        folder = Path(name)
        job = run_prepare("rollout_prepare.py", job, folder, threads=args.threads)
        roof = run_arm(Arm("roof", sys.executable, "rollout_roof.py"), job, folder)
        for number in range(args.rounds):
            for arm in ARMS if number % 2 == 0 else reversed(ARMS):
                say(f"{size}, round {number + 1} of {args.rounds}: {arm.name} …")
                results[arm.name].append(run_arm(arm, job, folder))
            gap = results[OURS][-1]["largest_gap"]
            if args.precision == "float32" and gap > LARGEST_GAP:
                raise NotEqualError(f"log-probs of the engine are off by {gap:.1e} nats (allowed: {LARGEST_GAP:.0e})")
    return results, roof


def rollout_table(results: Results) -> str:
    """Seconds, tokens a second and the ratios of paired processes, medians and ranges."""
    medians = {arm: [statistics.median(run["seconds"][1:]) for run in runs] for arm, runs in results.items()}
    rows = [
        [
            arm,
            show(Spread.of(own), ".2f"),
            show(Spread.of([results[arm][0]["drawn_tokens"] / value for value in own]), ".0f"),
            *(
                show(Spread.of([theirs / mine for theirs, mine in zip(medians[peer], own, strict=True)]), ".2f")
                for peer in (PEER, PEER_TUNED)
            ),
        ]
        for arm, own in medians.items()
    ]
    return markdown_table(["arm", "seconds", "tokens/s", f"{PEER} / arm", f"{PEER_TUNED} / arm"], rows)


def roof_table(results: Results, roof: Mapping[str, Any]) -> str:
    """A step of few rows and of many, beside what it cannot be faster than."""
    rows = []
    for count in STEP_ROWS:
        read, multiply = roof["read_seconds"], roof["multiply_seconds_per_row"] * count
        for arm, runs in results.items():
            own = statistics.median(run["step_seconds"][str(count)] for run in runs)
            cells = [f"{value * 1e3:.1f}" for value in (own, read, multiply)]
            rows.append([str(count), arm, *cells, f"{max(read, multiply) / own:.2f}"])
    return markdown_table(["rows", "arm", "ms a step", "to read weights, ms", "to multiply, ms", "share of roof"], rows)


def profile_table(results: Results) -> str:
    """Where the time of Burnish's rollout goes."""
    rows = [
        [f"`{row['operation']}`", f"{row['share']:.1%}", f"{row['calls']:,}"] for row in results[OURS][0]["profile"]
    ]
    return markdown_table(["operation", "share", "calls"], rows)


def page(record: Mapping[str, Any], found: Sequence[tuple[Size, Results, Mapping[str, Any]]]) -> str:
    """The measurements as Markdown."""
    settings = record["settings"]
    lines = [
        f"# Rollouts, {settings['precision']}, {record['date']}",
        "",
        f"`{record['command']}` (commit {record['commit']})",
        "",
        f"SmolLM2-135M; one rollout to warm up, then {settings['steps']} timed in each of {settings['rounds']} "
        f"processes an arm, in alternating order; {settings['threads']} threads. Medians over the processes, and "
        "their range.",
    ]
    for size, results, roof in found:
        lines += ["", f"## {size}", "", rollout_table(results), "", roof_table(results, roof)]
        lines += [
            "",
            f"Memory is read at {roof['bytes_per_second'] / 1e9:.1f} GB/s. Burnish: {results[OURS][0]['engine']}.",
        ]
        lines += [
            f"Its log-probs differ from those of a float32 forward by at most {results[OURS][0]['largest_gap']:.1e}."
        ]
        if results[OURS][0]["profile"]:
            lines += ["", profile_table(results)]
    first = found[0][1]
    return "\n".join([*lines, "", f"Machine: {record['machine']['summary']}.", "", *version_lines(first)])


def main() -> int:
    parser = make_parser(__doc__, steps=5, rounds=2)
    parser.add_argument("--sizes", type=Size.of, nargs="+", default=[Size.of(text) for text in SIZES],
                        help=f"prompts x answers x answer tokens x prompt tokens ({' '.join(SIZES)})")  # fmt: skip
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--engine", nargs="*", default=[], metavar="NAME=VALUE", help="options of NativeGenerator")
    parser.add_argument("--profile", action="store_true", help="also where the time of Burnish's rollout goes")
    args, machine = parser.parse_args(), machine_facts()
    try:
        found = [(size, *measure(size, args)) for size in args.sizes]
    except (NotEqualError, ArmFailedError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    settings = {name: vars(args)[name] for name in ("precision", "steps", "rounds", "threads", "engine")}
    cases = [{"size": vars(size), "arms": results, "roof": roof} for size, results, roof in found]
    record = new_record(machine, settings=settings, cases=cases)
    deliver(args, f"rollout-{args.precision}", record, page(record, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
