"""The tables of docs/reward.md, out of the registry and the configuration."""

from __future__ import annotations

from dataclasses import MISSING, fields

from losses_table import entries, formula, options, paper

from burnish.losses import reward_losses
from burnish.trainers.config import PolicyConfig
from burnish.trainers.reward import RewardConfig

NEEDS = {"score": "scores in the rows"}


def reward_losses_table() -> str:
    """One row for each reward loss: formula, paper, what it is averaged over, what it needs, its options."""
    head = "| loss | formula | paper | averaged over | needs | options |"
    rows = [
        f"| `{name}` | {formula(e)} | {paper(e)} | {e.facts['per']} "
        f"| {', '.join(NEEDS[need] for need in sorted(e.facts['needs'])) or '-'} | {options(e)} |"
        for name, e in entries(reward_losses)
    ]
    return "\n".join([head, "|---|---|---|---|---|---|", *rows])


def reward_fields_table() -> str:
    """The options that other trainers do not have, or have with another default."""
    own = {f.name: _default(f) for f in fields(PolicyConfig)}
    changed = [f for f in fields(RewardConfig) if f.name not in own or _default(f) != own[f.name]]
    rows = [f"| `{f.name}` | `{_default(f)}` | {f.metadata['help']} |" for f in changed]
    return "\n".join(["| option | default | what it does |", "|---|---|---|", *rows])


def _default(field) -> str:
    return repr(field.default if field.default is not MISSING else field.default_factory())
