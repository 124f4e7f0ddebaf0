"""How the cost of a step grows with prompt length, answers to a prompt, vocabulary, model size; TRL beside it.

Each point is one process of each library with a step of GRPO (rollout and update), answers of one length, no reference.
Vocabulary and size have models of random weights. A point that does not fit into memory is shown as that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from _axes import AXES, BASE, Point
from _commands import deliver, make_parser
from _compare import above_bytes, step_mean
from _paired import Case, compare, make_arms
from _processes import Arm, ArmFailedError, say
from _record import machine_facts, markdown_table, new_record
from _svg import Chart, Line, grid

QUANTITIES = {"seconds": "seconds a step", "update": "seconds of the update", "memory": "GB above the models"}
Cell = Mapping[str, Any]


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, steps=2)
    parser.add_argument("--only", nargs="+", choices=list(AXES), default=list(AXES), metavar="AXIS", help="axes to run")
    parser.add_argument("--most", type=float, help="leave out points above this value")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--data", default="recipe:spoken-heldout", help="rows whose text fills the prompts")
    parser.add_argument("--peer-tuned", action="store_true", help="also TRL with what Burnish sets on the CPU")
    parser.add_argument("--ours-only", action="store_true", help="Burnish alone")
    return parser.parse_args()


def main() -> int:
    args, machine = parse_arguments(), machine_facts()
    arms = make_arms("grpo", given_python=args.peer_python, peer=not args.ours_only, peer_tuned=args.peer_tuned)
    cells = [
        cell
        for axis in args.only
        for point in AXES[axis].points
        if args.most is None or point.value <= args.most
        for cell in measure(axis, point, arms, args)
    ]
    settings = {"steps": args.steps, "threads": args.threads, "precision": args.precision, "base": BASE}
    record = new_record(machine, settings=settings, cells=cells)
    deliver(args, "scaling", record, page(record, cells), figure=figure(cells))
    return 0


def measure(axis: str, point: Point, arms: Sequence[Arm], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One cell an arm, each run by itself: one that runs out of memory says nothing of the other."""
    case = Case(
        method="grpo",
        data=args.data,
        options={**BASE, **point.options},
        precision=args.precision,
        steps=args.steps,
        threads=args.threads,
        geometry=point.geometry,
        gate=False,
    )
    cells = []
    for arm in arms:
        say(f"{axis} {point.value:g}: {arm.name}")
        place = {"axis": axis, "value": point.value, "arm": arm.name}
        try:
            (run,) = compare(case, [arm]).processes[arm.name]
        except ArmFailedError as error:
            say(str(error))
            cells.append({**place, "failed": str(error).splitlines()[-1]})
            continue
        cells.append({**place, **quantities(run)})
    return cells


def quantities(run: Mapping[str, Any]) -> dict[str, float | None]:
    """Seconds and memory of a process."""
    return {
        "seconds": step_mean(run["seconds"]),
        "generate": step_mean(run["phases"]["generate"]),
        "update": step_mean(run["phases"]["update"]),
        "memory": above_bytes(run) / 1e9 if run["peak_bytes"] and run["loaded_bytes"] else None,
    }


def page(record: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """The measurements as Markdown, an axis after the other."""
    settings = record["settings"]
    lines = [
        f"# How cost grows, {record['date']}",
        "",
        f"`{record['command']}` (commit {record['commit']})",
        "",
        f"A step of GRPO in {settings['precision']}: {BASE['num_generations']} answers of {BASE['new_tokens']} tokens "
        f"to one prompt of {BASE['prompt_tokens']} tokens, SmolLM2-135M, but for what grows; no reference; "
        f"{settings['threads']} threads; mean of {settings['steps']} steps after one to warm up. Memory is the peak "
        "above the loaded model: gradients and optimizer are in it.",
        "",
    ]
    for axis in dict.fromkeys(cell["axis"] for cell in cells):
        lines += [f"## {AXES[axis].label}", "", axis_table(axis, cells), ""]
    return "\n".join([*lines, f"Machine: {record['machine']['summary']}; {record['machine']['system']}."])


def axis_table(axis: str, cells: Sequence[Cell]) -> str:
    """A row a size, the arms beside each other."""
    own = [cell for cell in cells if cell["axis"] == axis]
    arms = list(dict.fromkeys(cell["arm"] for cell in own))
    by_place = {(cell["value"], cell["arm"]): cell for cell in own}
    rows = [
        [f"{value:g}", *(shown(by_place[value, arm], name) for name in QUANTITIES for arm in arms)]
        for value in dict.fromkeys(cell["value"] for cell in own)
    ]
    return markdown_table([AXES[axis].label, *(f"{arm}: {q}" for q in QUANTITIES.values() for arm in arms)], rows)


def shown(cell: Cell, quantity: str) -> str:
    """A number, or why there is none."""
    if "failed" in cell:
        return "out of memory" if "killed" in cell["failed"] else "failed"
    return "-" if cell[quantity] is None else f"{cell[quantity]:.2f}"


def figure(cells: Sequence[Cell]) -> str:
    """Seconds and memory against each axis, all logarithmic."""
    charts = []
    for axis in dict.fromkeys(cell["axis"] for cell in cells):
        for quantity in ("seconds", "memory"):
            lines = [
                Line(arm, [(cell["value"], cell[quantity]) for cell in cells
                           if cell["axis"] == axis and cell["arm"] == arm and cell.get(quantity)])
                for arm in dict.fromkeys(cell["arm"] for cell in cells)
            ]  # fmt: skip
            label = AXES[axis].label
            charts.append(Chart(f"Against {label}", label, QUANTITIES[quantity], lines, log_x=True, log_y=True))
    return grid(charts)


if __name__ == "__main__":
    sys.exit(main())
