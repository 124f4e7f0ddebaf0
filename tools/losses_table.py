"""The table of docs/losses.md, out of the registry and the docstrings of its functions."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from burnish.losses import divergences, preference_losses
from burnish.registry import Entry, Table

READS = {"difference": "D", "ratios": "r of each answer", "none": "nothing"}


def losses_table() -> str:
    """One row for each preference loss: formula, paper, what it is averaged over, what it reads, its options."""
    head = "| loss | formula | paper | averaged over | of the reference | needs | options |"
    rows = [
        f"| `{name}` | {formula(entry)} | {paper(entry)} | {entry.facts['per']} | {READS[entry.facts['reference']]} "
        f"| {needs(entry)} | {options(entry)} |"
        for name, entry in entries(preference_losses)
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def divergences_table() -> str:
    """One row for each divergence: formula, paper, options."""
    head = "| divergence | formula | paper | options |"
    rows = [f"| `{name}` | {formula(e)} | {paper(e)} | {options(e)} |" for name, e in entries(divergences)]
    return "\n".join([head, "|---|---|---|---|", *rows])


def entries(table: Table[..., Any]) -> list[tuple[str, Entry[..., Any]]]:
    """The rows of a table, in its order."""
    return [(name, table[name]) for name in table]


def formula(entry: Entry[..., Any]) -> str:
    """The docstring's paragraph with the formula: the first that says `loss = ` or `score = `."""
    paragraphs = textwrap.dedent(inspect.getdoc(entry.function) or "").split("\n\n")
    found = next(text for text in paragraphs if "loss = " in text or "score = " in text)
    return " ; ".join(f"`{line.strip()}`" for line in found.replace("|", "\\|").splitlines())


def paper(entry: Entry[..., Any]) -> str:
    """A link to the paper."""
    return f"[{entry.paper}](https://arxiv.org/abs/{entry.paper})"


def needs(entry: Entry[..., Any]) -> str:
    """What the rows, the forward or the step must provide."""
    source = inspect.getsource(entry.function)
    parts = ["a margin or scores in the rows"] if "required_margin" in source else []
    parts += [f"the forward's {name}" for name in sorted(entry.facts["needs"])]
    parts += ["all pairs of the step (two passes)"] if entry.facts["couples_rows"] else []
    parts += [f"the running mean of {row.metric.strip('_')}" for row in entry.facts["follows"].values()]
    return ", ".join(parts) or "-"


def options(entry: Entry[..., Any]) -> str:
    """Hyper-parameters; those with a default of their own are passed in `loss_kwargs`."""
    shown = [
        f"`{name}`" if default is inspect.Parameter.empty else f"`{name}={default}`"
        for name, default in entry.hyper_parameters.items()
    ]
    return ", ".join(shown) or "-"
