"""The gallery, trained: every algorithm of examples/algorithms for a few steps on the embedded model, in one table.

Each is its run file, in a process of its own: preference methods on recipe:spoken, those that draw answers on
recipe:sums. The held-out measure is that of the run itself, before and after: for the former the share of pairs whose
chosen answer the trainer's own score prefers, for the latter the share of sampled answers that are right. Seconds are
those of the run without evaluation, that is the sum of its step times.

GKD's teacher is the model that RLOO has trained before it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _commands import deliver, make_parser, positive
from _gallery import GALLERY, Algorithm
from _processes import CHECKOUT, peer_python, say
from _record import machine_facts, markdown_table, new_record
from lines import own_lines, peer_lines, trl_package

from burnish.intervals import normal, shown_interval, wilson

TRAIN = "from burnish.cli.app import main; main()"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=positive, help="of each algorithm; unset: as its run file says")
    parser.add_argument("--only", nargs="+", choices=[a.name for a in GALLERY], help="these algorithms alone")
    parser.add_argument("--runs", metavar="DIR", help="keep the runs here, and take those that have ended")
    args = parser.parse_args()
    machine, package = machine_facts(), trl_package(peer_python(args.peer_python))
    with tempfile.TemporaryDirectory(prefix="gallery-") as scratch:
        folder = Path(args.runs or scratch).absolute()
        found: dict[str, Any] = {}
        for algorithm in chosen(args.only):
            if not has_ended(folder / algorithm.name):
                say(f"{algorithm.title} …")
                train(algorithm, folder, args.steps, threads=args.threads)
            found[algorithm.name] = outcome(algorithm, folder / algorithm.name)
    lines = {a.name: (own_lines(a), peer_lines(package, a.peer)) for a in GALLERY if a.name in found}
    record = new_record(machine, settings={"threads": args.threads}, algorithms=found, lines=lines)
    deliver(args, "gallery", record, page(found, lines, record))


def chosen(only: list[str] | None) -> Iterator[Algorithm]:
    """The algorithms to train, a teacher before its student."""
    wanted = {a.name for a in GALLERY} if only is None else set(only)
    wanted |= {a.teacher for a in GALLERY if a.name in wanted and a.teacher is not None}
    return (algorithm for algorithm in GALLERY if algorithm.name in wanted)


def train(algorithm: Algorithm, folder: Path, steps: int | None, *, threads: int) -> None:
    """Its run file, into a directory of its own.

    Raises:
        SystemExit: the run failed; its last lines are the message.
    """
    options = {"training.output_dir": folder / algorithm.name, "training.overwrite_output_dir": "true"}
    options |= {} if steps is None else {"training.max_steps": steps}
    options |= {} if algorithm.teacher is None else {"ref_model": folder / algorithm.teacher}
    settings = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-c", TRAIN, "train", str(algorithm.run_file), *settings]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "src"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = [*done.stdout.splitlines(), *done.stderr.splitlines()][-30:]
        raise SystemExit("\n".join([*tail, f"{algorithm.title} failed with code {done.returncode}"]))


def has_ended(run_dir: Path) -> bool:
    """Whether there is a run, with its held-out measure after training."""
    events = run_dir / "events.jsonl"
    return events.exists() and any(e.get("when") == "after" for e in _read(events) if e.get("kind") == "measured")


def outcome(algorithm: Algorithm, run_dir: Path) -> dict[str, Any]:
    """Steps, seconds, and the held-out measure before and after, out of the run's own files."""
    lines = list(_read(run_dir / "metrics.jsonl"))
    steps = [line for line in lines if "grad_norm" in line]
    measured = {e["when"]: e["estimates"] for e in _read(run_dir / "events.jsonl") if e.get("kind") == "measured"}
    name = f"eval_{algorithm.measure}"
    return {
        "steps": steps[-1]["step"],
        "seconds": sum(line["step_time"] for line in steps),  # a log line is a step
        "skipped": steps[-1]["num_skipped_steps"],
        **{when: measured[when][name] for when in ("before", "after")},
    }


def _read(path: Path) -> Iterator[Mapping[str, Any]]:
    return map(json.loads, path.read_text(encoding="utf-8").splitlines())


def page(found: Mapping[str, Any], lines: Mapping[str, tuple[int, int]], record: Mapping[str, Any]) -> str:
    """The table with what it means."""
    rows = [
        [
            a.title,
            str(lines[a.name][0]),
            f"{lines[a.name][1]}{'' if a.peer.is_shipped else ' (override)'}",
            str(found[a.name]["steps"]),
            f"held-out {a.measure}",
            *(_interval(found[a.name][when]) for when in ("before", "after")),
            f"{found[a.name]['seconds']:.0f}",
        ]
        for a in GALLERY
        if a.name in found
    ]
    header = ["algorithm", "lines here", "lines in TRL 1.16", "steps", "measure", "before", "after", "seconds"]
    meaning = "\n\n".join(" ".join(part.split()) for part in (__doc__ or "").split("\n\n")[1:])
    counted = "How lines are counted, and what was counted of TRL: `lines.py`. In brackets 95 % intervals."
    head = f"# The gallery, {record['date']}\n\n`{record['command']}`, commit {record['commit']}"
    return (
        f"{head}\n\n{meaning} {counted}\n\n{markdown_table(header, rows)}\n\n"
        f"{record['settings']['threads']} threads. Machine: {record['machine']['summary']}."
    )


def _interval(estimate: Mapping[str, Any]) -> str:
    mean = float(estimate["mean"])
    is_share = mean == estimate["mean_square"]
    found = wilson(mean, estimate["weight"]) if is_share else normal(mean, float(estimate["standard_error"]))
    return shown_interval(mean, found)


if __name__ == "__main__":
    main()
