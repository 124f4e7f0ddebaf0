"""A run file's reward functions on answers whose quality is known: what `burnish rewards` does."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from burnish.cli.functions import reward_functions, with_functions
from burnish.cli.methods import load, method_named
from burnish.cli.rewards import show_trial
from burnish.cli.run import load_data, rows_by_source
from burnish.cli.runfile import RunFile
from burnish.rewards import Scorer


def try_run_rewards(runfile: RunFile, *, sample: int, console: Console | None = None) -> None:
    """Score right, empty, echoed and garbage answers to the rows of a run file, and show what came of it.

    Raises:
        ValueError: the method draws no answers, or a function needs a column that is not there.
    """
    method = method_named(runfile.method)
    if not method.draws_answers:
        raise ValueError(f"method {runfile.method} draws no answers, so it has no rewards to try")
    make_config, _ = load(method)
    args: Any = make_config(**with_functions(runfile.training))
    rows: Any = next(iter(rows_by_source(load_data(runfile, args)[0]).values()))
    scorer = Scorer(
        reward_functions(runfile.rewards),
        weights=args.reward_weights,
        options=args.reward_options,
        isolation=args.reward_isolation,
        timeout=args.reward_timeout,
        on_error="unscored",
    )
    scorer.check_columns(column for column in rows.column_names if column != "prompt")
    show_trial(console or Console(), scorer, rows, sample=sample)
    scorer.close()
