"""What the command lines have in common: their options, and where the result goes. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from _processes import num_cores
from _record import write_record


def make_parser(
    description: str | None, *, steps: int | None = None, rounds: int | None = None
) -> argparse.ArgumentParser:
    """A parser with the common options.

    Args:
        description: shown by --help.
        steps: the default of this option, where a script has it.
        rounds: the same.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if steps is not None:
        parser.add_argument("--steps", type=positive, default=steps, help=f"timed, after one to warm up ({steps})")
    if rounds is not None:
        parser.add_argument("--rounds", type=positive, default=rounds, help=f"processes of each arm ({rounds})")
    parser.add_argument("--threads", type=positive, default=num_cores(), help="of each process (all cores)")
    parser.add_argument("--peer-python", metavar="PATH", help="a Python with trl; else .venv-trl is made")
    parser.add_argument("--write-results", action="store_true", help="keep what is printed in benchmarks/results/")
    return parser


def positive(text: str) -> int:
    """A whole number from 1, of the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: 1 or more")
    return value


def deliver(
    args: argparse.Namespace, name: str, record: Mapping[str, Any], text: str, *, figure: str | None = None
) -> None:
    """Print the page and, if asked for, write it, its numbers and its picture into `results/`."""
    print(text)
    if not args.write_results:
        return
    path = write_record(name, record, text)
    if figure is not None:
        path.with_suffix(".svg").write_text(figure, encoding="utf-8")
    print(f"wrote results/{path.name} and what belongs to it")
