"""The tables of docs/policy-losses.md, out of the registries and the docstrings of their functions."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from losses_table import entries, options
from losses_table import paper as linked

from burnish.advantages import advantages
from burnish.importance import importance_corrections
from burnish.losses import aggregations, kl_estimators, policy_losses
from burnish.registry import Entry, Table

FORMULA = re.compile(r"^ *(loss|kl|weight|A|A_k|A_t|z_f) = ", re.MULTILINE)


def policy_losses_table() -> str:
    """One row for each policy loss: formula, paper, ratio, aggregation, what its paper sets, its options."""
    head = "| loss | formula | paper | ratio | aggregation | its paper's values | options |"
    rows = [
        f"| `{name}` | {formula(e)} | {paper(e)} | {e.facts['ratio']} | {e.facts['aggregation']} | {values(e)} "
        f"| {options(e)} |"
        for name, e in entries(policy_losses)
    ]
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def aggregations_table() -> str:
    """One row for each aggregation: what it is the mean of."""
    head = "| aggregation | what it is | averaged over | paper |"
    rows = [f"| `{name}` | {summary(e)} | {e.facts['per']} | {paper(e)} |" for name, e in entries(aggregations)]
    return "\n".join([head, "|---|---|---|---|", *rows])


def kl_table() -> str:
    """One row for each KL estimator."""
    head = "| estimator | formula | what it is | as a loss | paper |"
    rows = [
        f"| `{name}` | {formula(e)} | {summary(e)} | {paragraph(e, 'As a loss')} | {paper(e)} |"
        for name, e in entries(kl_estimators)
    ]
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def advantages_table() -> str:
    """One row for each advantage."""
    return _with_formulas("advantage", advantages)


def importance_table() -> str:
    """One row for each correction of the sampler."""
    return _with_formulas("mode", importance_corrections)


def _with_formulas(kind: str, table: Table[..., Any]) -> str:
    head = f"| {kind} | what it is | formula | paper | options |"
    rows = [f"| `{name}` | {summary(e)} | {formula(e)} | {paper(e)} | {options(e)} |" for name, e in entries(table)]
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def formula(entry: Entry[..., Any]) -> str:
    """The docstring's paragraph with the formula."""
    found = next(text for text in _paragraphs(entry) if FORMULA.search(text))
    return " ; ".join(f"`{line.strip()}`" for line in found.replace("|", "\\|").splitlines())


def paragraph(entry: Entry[..., Any], start: str) -> str:
    """The paragraph that begins so, on one line, without the words it begins with."""
    found = next(text for text in _paragraphs(entry) if text.startswith(start))
    return " ".join(found.removeprefix(start).replace("|", "\\|").split())


def summary(entry: Entry[..., Any]) -> str:
    """The first line of the docstring."""
    return _paragraphs(entry)[0].replace("|", "\\|")


def paper(entry: Entry[..., Any]) -> str:
    """A link, or nothing for what has no paper of its own."""
    return "-" if entry.paper is None else linked(entry)


def values(entry: Entry[..., Any]) -> str:
    """What the paper sets away from our defaults."""
    return ", ".join(f"`{name}={value!r}`" for name, value in entry.facts["paper_values"].items()) or "-"


def _paragraphs(entry: Entry[..., Any]) -> list[str]:
    return textwrap.dedent(inspect.getdoc(entry.function) or "").split("\n\n")
