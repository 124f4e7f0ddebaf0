"""What `burnish rewards` shows: the table of a trial of the reward functions, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from burnish.rewards.score import Scorer
    from burnish.rewards.trial import Trial


def show_trial(console: Console, scorer: Scorer, rows: Sequence[Mapping[str, Any]], *, sample: int = 20) -> bool:
    """Try the rewards on a sample of rows and print what came of it; True if nothing stands out."""
    from burnish.rewards.trial import try_rewards

    trial = try_rewards(scorer, rows, sample=sample)
    console.print(_table(trial))
    if trial.right_column is None:
        console.print("No column with right answers was found: nothing to compare with.")
    else:
        console.print(Text(f"Right answers: the column {trial.right_column!r} of {trial.num_prompts} rows."))
    for verdict in trial.verdicts:
        console.print(Text(f"! {verdict}"))
    if not trial.verdicts:
        console.print("Nothing stands out.")
    return not trial.verdicts


def _table(trial: Trial) -> Table:
    table = Table("reward", "answers", "mean", "lowest", "highest", "scored")
    previous = None
    for row in trial.rows:
        numbers = ["–" if math.isnan(value) else f"{value:.3g}" for value in (row.mean, row.lowest, row.highest)]
        name = row.reward if row.reward != previous else ""
        table.add_row(Text(name), row.kind, *numbers, f"{row.num_scored}/{row.num_answers}")
        previous = row.reward
    return table
