"""How long until answers are right: `recipe:grpo` in Burnish and in TRL, on the same held-out sums.

Two measurements. Steps to an accuracy (several seeds of Burnish, one of TRL with the same hyper-parameters; the weights
of both are judged by the same code) and seconds a step (paired, in turn, answers of one length). Their product is the
time to reward; beside it stands the time that the pair of full runs really took.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _commands import deliver, make_parser
from _compare import step_mean
from _paired import OURS, PEER, Case, NotEqualError, compare, make_arms
from _processes import Arm, ArmFailedError, peer_python, run_arm, run_prepare, say
from _record import machine_facts, new_record
from _rewards import Run, read_run_directory
from _rewards_page import figure, page

from burnish.cli.runfile import load_runfile

EVALUATION_SEED = 42


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, steps=5, rounds=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="of Burnish; TRL has the first one")
    parser.add_argument("--max-steps", type=int, default=30, help="of each run (default: 30)")
    parser.add_argument("--every", type=int, default=5, help="steps between two evaluations (default: 5)")
    parser.add_argument("--eval-rows", type=int, default=128, help="held-out prompts (default: 128, all)")
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.6, 0.7], help="accuracies to reach")
    parser.add_argument("--ours-only", action="store_true", help="Burnish alone, in all parts")
    parser.add_argument("--from-runs", type=Path, nargs="+", metavar="DIR", help="run directories for Burnish's seeds")
    parser.add_argument(
        "--from-results", type=Path, metavar="JSON", help="an earlier result: only what it lacks is run"
    )
    return parser.parse_args()


def main() -> int:
    args, machine = parse_arguments(), machine_facts()
    earlier = json.loads(args.from_results.read_text(encoding="utf-8")) if args.from_results else {}
    try:
        seconds = earlier.get("seconds_a_step", {})
        if not seconds or (PEER not in seconds and not args.ours_only):
            seconds = time_steps(args)
        runs = [read_earlier(run) for run in earlier.get("runs", [])]
        runs += [read_run_directory(directory) for directory in args.from_runs or []]
        runs += train(args, known={run.name for run in runs}, ours_known=bool(args.from_runs))
    except (NotEqualError, ArmFailedError, ValueError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    settings = {name: value for name, value in vars(args).items() if not isinstance(value, Path | list)}
    recipe = load_runfile("recipe:grpo").training
    settings |= {"seeds": args.seeds, "targets": args.targets, "learning_rate": recipe["learning_rate"]}
    settings.pop("peer_python")
    record = new_record(machine, settings=settings, seconds_a_step=seconds, runs=[asdict(run) for run in runs])
    deliver(args, "time-to-reward", record, page(record, runs, args.targets), figure=figure(runs))
    return 0


def read_earlier(run: Mapping[str, Any]) -> Run:
    """A run as an earlier result holds it; JSON has its steps as text."""
    return Run(**{**run, "curve": {int(step): found for step, found in run["curve"].items()}})


def time_steps(args: argparse.Namespace) -> dict[str, list[float]]:
    """Mean seconds a step of each process of each library, in turn, on the shape of the recipe."""
    options = {"num_prompts": 8, "num_generations": 8, "new_tokens": 16, "micro_batch": 16, "beta": 0.0}
    case = Case(method="grpo", options=options, steps=args.steps, rounds=args.rounds, threads=args.threads)
    arms = make_arms("grpo", given_python=args.peer_python, peer=not args.ours_only, peer_tuned=not args.ours_only)
    processes = compare(case, arms).processes
    return {arm: [step_mean(run["seconds"]) for run in found] for arm, found in processes.items()}


def train(args: argparse.Namespace, *, known: set[str], ours_known: bool) -> list[Run]:
    """The full runs that are not known yet: Burnish with each seed, TRL with the first one after Burnish's first."""
    points = sorted({*range(args.every, args.max_steps, args.every), args.max_steps})
    wanted = [] if ours_known else [(OURS, seed) for seed in args.seeds]
    if not args.ours_only:
        wanted.insert(1, (PEER, args.seeds[0]))
    wanted = [(library, seed) for library, seed in wanted if run_name(library, seed) not in known]
    if not wanted:
        return []
    with tempfile.TemporaryDirectory(prefix="burnish-benchmark-") as name:
        folder = Path(name)
        plan = {"model": "smollm2-135m", "geometry": None, "eval_rows": args.eval_rows, "eval_seed": EVALUATION_SEED}
        plan |= {"points": points, "threads": args.threads, "seed": 0}
        job = run_prepare("sums_prepare.py", plan, folder, threads=args.threads)
        return [one_run(library, seed, job, folder, args.peer_python) for library, seed in wanted]


def one_run(library: str, seed: int, job: Mapping[str, Any], folder: Path, given_python: str | None) -> Run:
    """Train in one library, then judge the weights that it saved on the way."""
    ours = Arm(OURS, sys.executable, "sums_burnish.py")
    arm = ours if library == OURS else Arm(PEER, peer_python(given_python), "sums_trl.py")
    with tempfile.TemporaryDirectory(prefix="snapshots-", dir=folder) as snapshots:
        own = {**job, "seed": seed, "snapshots": snapshots}
        say(f"{run_name(library, seed)}: training …")
        trained = run_arm(arm, own, folder)
        say(f"{run_name(library, seed)}: evaluating …")
        judged = run_arm(Arm("evaluation", sys.executable, "sums_evaluate.py"), own, folder)
    curve = {int(step): found for step, found in judged["curve"].items()}
    return Run(name=run_name(library, seed), seed=seed, curve=curve, seconds=trained["seconds"])


def run_name(library: str, seed: int) -> str:
    """How a run is called in tables."""
    return f"{library}, seed {seed}"


if __name__ == "__main__":
    sys.exit(main())
