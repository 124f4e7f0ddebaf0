"""A trace on the terminal: a wall after the other."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from burnish.report.preview_console import preview_table
from burnish.report.tokens import escaped
from burnish.report.trace import Trace, Wall


def trace_table(trace: Trace) -> RenderableType:
    """Title, notes and walls."""
    parts: list[RenderableType] = [Text(_inert(trace.title), style="bold")]
    parts += [Text(_inert(line)) for line in trace.notes]
    for number, wall in enumerate(trace.walls, 1):
        parts += _wall(number, wall)
    return Group(*parts)


def _wall(number: int, wall: Wall) -> Iterator[RenderableType]:
    yield Text.assemble((f"\n{number}  {wall.room}", "bold"), (f"  ->  {wall.kind}", "cyan"))
    if wall.sentence:
        yield Text(f"   {_inert(wall.sentence)}", style="dim")
    table = Table.grid(padding=(0, 2))
    table.add_column("", no_wrap=True, width=1)
    for name in ("field", "shape", "dtype", "first values"):
        table.add_column(name, overflow="fold")
    for field in wall.fields:
        cells = (field.name, field.shape, field.dtype, field.shown)
        table.add_row("", *(Text(escaped(cell, line_break="↵")) for cell in cells))
    yield table
    if wall.carried:
        yield Text(f"   as before: {', '.join(wall.carried)}", style="dim")
    for name, text in wall.texts:
        yield Text.assemble((f"   {name}  ", "bold"), escaped(text, line_break="↵"))
    if wall.view is not None:
        yield preview_table([wall.view])


def _inert(text: str) -> str:
    return escaped(text, line_break="\n")
