"""The table that Burnish is held against: each row a paired comparison with TRL, beside its floor and its aim.

`make bench` runs all of it; a row can be run alone by its name. "Stock" is TRL with gradient checkpointing off, "tuned"
the same TRL with what Burnish sets on the CPU. A row that misses its floor is followed by the profile of a step.
An hour of measuring can be had in pieces: `--from-results` completes an earlier result of the same commit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import head
from _commands import deliver, make_parser
from _paired import Case, Comparison, NotEqualError, compare, make_arms
from _processes import CHECKOUT, Arm, ArmFailedError, peer_python, run_arm, run_prepare, say
from _record import commit, machine_facts, new_record
from _table_page import page
from _table_rows import CASES, PREFERENCES, ROWS, Outcome, Row, product_share

DATA = CHECKOUT.parent / "shared" / "data" / PREFERENCES


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, steps=5, rounds=1)
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=names, help=f"rows to run: {', '.join(names)}")
    parser.add_argument("--preferences", type=Path, default=DATA, help="pairs (../shared/data/preferences.jsonl)")
    parser.add_argument("--no-profile", action="store_true", help="no profile of rows that miss their floor")
    parser.add_argument("--from-results", type=Path, metavar="JSON", help="an earlier result: it is completed")
    return parser.parse_args()


def main() -> int:
    args, machine = parse_arguments(), machine_facts()
    settings = {"steps": args.steps, "rounds": args.rounds, "threads": args.threads}
    try:
        earlier = read_earlier(args.from_results, settings) if args.from_results else {}
    except ValueError as error:
        print(error)
        return 1
    args.peer_python = peer_python(args.peer_python)
    known = {name: Outcome(**found) for name, found in earlier.get("outcomes", {}).items() if not found["problem"]}
    rows = [row for row in ROWS if args.only is None or row.name in args.only or row.name in known]
    comparisons = run_cases(rows, args, earlier.get("processes", {}))
    outcomes = {
        row.name: measured(row, comparisons) if row.measure else known.get(row.name) or measured_head(row, args)
        for row in rows
    }
    found = {name: comparison for name, comparison in comparisons.items() if isinstance(comparison, Comparison)}
    roofs = dict(earlier.get("roofs", {}))
    for precision in sorted({c.case.precision for c in found.values()} - roofs.keys()):
        roofs[precision] = roof(precision, args)
    shares = {name: product_share(done, roofs[done.case.precision]) for name, done in found.items()}
    slow = [row.case for row in rows if row.case in found and row.reaches(outcomes[row.name], row.floor) is False]
    profiles = dict(earlier.get("profiles", {}))
    for case in [] if args.no_profile else dict.fromkeys(str(case) for case in slow if case not in profiles):
        profiles[case] = profile(found[case].case)
    record = new_record(
        machine,
        settings=settings,
        outcomes={name: asdict(outcome) for name, outcome in outcomes.items()},
        product_shares=shares,
        roofs=roofs,
        profiles=profiles,
        processes={name: comparison.processes for name, comparison in found.items()},
    )
    deliver(args, "table", record, page(record, rows, outcomes, found, shares, profiles))
    return int(any(outcome.problem for outcome in outcomes.values()))


def read_earlier(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier result of the same code and settings.

    Raises:
        ValueError: it was measured with others, so that its numbers do not belong beside new ones.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, now in {"settings": dict(settings), "commit": commit()}.items():
        if record[name] != now:
            raise ValueError(f"{path.name} was measured with {name} {record[name]}, this is {now}: measure all anew")
    return record


def run_cases(
    rows: Sequence[Row], args: argparse.Namespace, known: Mapping[str, Mapping[str, Any]]
) -> dict[str, Comparison | str]:
    """Each case that a row needs, once, but for those whose processes are known; of one that cannot be run, why."""
    done: dict[str, Comparison | str] = {}
    for name in dict.fromkeys(row.case for row in rows if isinstance(row.case, str)):
        case = sized(CASES[name], args)
        if name in known:
            done[name] = Comparison(case, {}, known[name])
            continue
        say(f"{name}:")
        if case.data == str(args.preferences) and not args.preferences.is_file():
            done[name] = f"not run: no file {args.preferences.name}; --preferences names one"
            continue
        arms = make_arms(case.method, given_python=args.peer_python, peer_tuned=True)
        try:
            done[name] = compare(case, arms)
        except (NotEqualError, ArmFailedError) as error:
            say(str(error))
            done[name] = f"{type(error).__name__.removesuffix('Error')}: {str(error).splitlines()[-1]}"
    return done


def sized(case: Case, args: argparse.Namespace) -> Case:
    """A case with the command line's numbers, and its data where they lie."""
    data = str(args.preferences) if case.data == PREFERENCES else case.data
    return replace(case, data=data, steps=args.steps, rounds=args.rounds, threads=args.threads)


def measured(row: Row, comparisons: Mapping[str, Comparison | str]) -> Outcome:
    """The outcome of a row whose case was run."""
    comparison = comparisons[str(row.case)]
    if isinstance(comparison, str):
        return Outcome(problem=comparison)
    assert row.measure is not None
    return row.measure(comparison)


def measured_head(row: Row, args: argparse.Namespace) -> Outcome:
    """The outcome of a row about the head."""
    assert isinstance(row.case, int)
    try:
        found = head.measure(head.HeadCase(vocabulary=row.case, threads=args.threads), python=args.peer_python)
    except (NotEqualError, ArmFailedError) as error:
        return Outcome(problem=str(error).splitlines()[-1])
    return Outcome(head.share(found))


def roof(precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a token of the model's matrix products at this machine's best speed."""
    say(f"roof, {precision} …")
    job = {"model": "smollm2-135m", "precision": precision, "threads": args.threads}
    with tempfile.TemporaryDirectory(prefix="burnish-benchmark-") as folder:
        return run_arm(Arm("roof", sys.executable, "roof.py"), job, Path(folder))


def profile(case: Case) -> list[dict[str, Any]]:
    """The operations of one step of Burnish that take longest; none if that step fails under the profiler."""
    say(f"profile, {case.method} {case.precision} …")
    (arm,) = make_arms(case.method, peer=False)
    short = replace(case, steps=1, gate=False)
    with tempfile.TemporaryDirectory(prefix="burnish-benchmark-") as name:
        folder = Path(name)
        job = run_prepare(f"{case.method}_prepare.py", short.job(), folder, threads=case.threads)
        try:
            return run_arm(arm, {**job, "profile": True}, folder)["profile"]
        except ArmFailedError as error:
            say(str(error))
            return []


if __name__ == "__main__":
    sys.exit(main())
