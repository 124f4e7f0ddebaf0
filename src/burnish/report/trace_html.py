"""A trace as one HTML file, in the look of the preview: a table for each wall, and the first prompt token by token."""

from __future__ import annotations

from burnish.report.page import inert, page
from burnish.report.parcels import Field
from burnish.report.preview_html import STYLE as TOKENS
from burnish.report.preview_html import legend, view_section
from burnish.report.trace import Trace, Wall

STYLE = """
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600 } th, td { padding: .25rem .8rem .25rem 0; vertical-align: top }
td { border-top: 1px solid var(--line); font-size: .87em; overflow-wrap: anywhere }
td, dd { font-family: ui-monospace, monospace } td:nth-child(2), td:nth-child(3) { color: var(--dim) }
th:nth-child(1), th:nth-child(2) { width: 16rem } th:nth-child(3) { width: 5rem }
h2 .count { font-weight: 400 } nav ol { columns: 20rem }
dt { font-weight: 600; margin-top: .4rem } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
"""


def trace_page(trace: Trace) -> str:
    """The page: a list of the walls, and each of them."""
    numbered = list(enumerate(trace.walls, 1))
    contents = "".join(f"<li><a href='#wall-{n}'>{inert(wall.room)}</a></li>\n" for n, wall in numbered)
    walls = "".join(_wall(number, wall) for number, wall in numbered)
    return page(trace.title, f"<nav><ol>\n{contents}</ol></nav>\n{walls}", notes=trace.notes, style=TOKENS + STYLE)


def _wall(number: int, wall: Wall) -> str:
    heading = f"{number}. {inert(wall.room)} <span class=count>{inert(wall.kind)}</span>"
    sentence = f"<p class=note>{inert(wall.sentence)}</p>\n" if wall.sentence else ""
    carried = f"<p class=note>as before: {inert(', '.join(wall.carried))}</p>\n" if wall.carried else ""
    words = "".join(f"<dt>{inert(name)}</dt><dd>{inert(text, line_break='↵')}</dd>\n" for name, text in wall.texts)
    texts = f"<dl>\n{words}</dl>\n" if words else ""
    view = "" if wall.view is None else f"<p class=note>{legend()}</p>\n{view_section(wall.view)}"
    return f"<h2 id=wall-{number}>{heading}</h2>\n{sentence}{_table(wall)}{carried}{texts}{view}"


def _table(wall: Wall) -> str:
    if not wall.fields:
        return ""
    head = "<tr><th>field</th><th>shape</th><th>dtype</th><th>first values</th></tr>\n"
    return f"<table>\n{head}{''.join(map(_row, wall.fields))}</table>\n"


def _row(field: Field) -> str:
    cells = (field.name, field.shape, field.dtype, field.shown)
    return f"<tr>{''.join(f'<td>{inert(cell)}</td>' for cell in cells)}</tr>\n"
