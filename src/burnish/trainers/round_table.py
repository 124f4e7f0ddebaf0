"""The table of `log_completions`: a few answers of a round with their rewards, for a person to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from burnish.runtime.terminal import visible

REWARD, EXTRA = "rewards/", "extra/"  # what the columns of reward functions, and of what they show, begin with
PROMPT_LENGTH, ANSWER_LENGTH, NOTE_LENGTH = 200, 400, 100  # characters
MOST_COLUMNS = 2


def round_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """Answers as rows: prompt, answer, each reward, their total if there are several, advantage, notes of functions.

    Args:
        rows: of `answer_rows`, those of a prompt one after the other; the prompt is shown once.
        title: what is shown.
    """
    rewards, extras = _columns(rows, REWARD), _columns(rows, EXTRA)
    numbers = [*rewards, *(["reward"] if len(rewards) > 1 else [])]
    is_wide = len(rewards) > MOST_COLUMNS  # then they are lines of one column
    table = Table(title=Text(visible(title)), title_justify="left", title_style="", expand=True)
    table.add_column("prompt", ratio=2, overflow="fold")
    table.add_column("answer", ratio=3, overflow="fold")
    for name in ["rewards"] if is_wide else [*map(_plain, numbers)]:
        table.add_column(Text(name), justify="right", overflow="fold")
    table.add_column("advantage", justify="right")
    if extras:
        table.add_column("notes", ratio=2, overflow="fold")
    for _, group in groupby(rows, key=lambda row: row["row"]):
        table.add_section()
        for index, row in enumerate(group):
            scores = {_plain(name): _number(row[name]) for name in numbers}
            shown = ["\n".join(" ".join(pair) for pair in scores.items())] if is_wide else [*scores.values()]
            notes = {_plain(name): shortened(row[name], NOTE_LENGTH).plain for name in extras}
            table.add_row(
                shortened(row["prompt"], PROMPT_LENGTH) if index == 0 else "",
                _answer(row),
                *map(Text, shown),
                format(row["advantage"], "+.3g"),
                *([Text("\n".join(map(": ".join, notes.items())))] if extras else []),
            )
    return table


def shortened(text: str, length: int) -> Text:
    r"""A text in one line, without what steers a terminal, and without its middle if it is longer than `length`.

    >>> shortened("a\n\nb", 10).plain
    'a ↵ b'
    """
    shown = " ↵ ".join(line.strip() for line in visible(text).splitlines() if line.strip())
    if len(shown) <= length:
        return Text(shown)
    half = (length - 3) // 2
    return Text.assemble(shown[:half], (" … ", "dim"), shown[-half:])


def _answer(row: Mapping[str, Any]) -> Text:
    text = shortened(row["completion"], ANSWER_LENGTH)
    text = text if text.plain else Text("(empty)", style="dim")
    return text.append(" … (cut)", style="dim") if row["finish_reason"] == "length" else text


def _number(value: float | None) -> str:
    return "–" if value is None else format(value, ".3g")


def _columns(rows: Sequence[Mapping[str, Any]], start: str) -> list[str]:
    return [name for name in (rows[0] if rows else {}) if name.startswith(start)]


def _plain(name: str) -> str:
    return visible(name.removeprefix(REWARD).removeprefix(EXTRA))
