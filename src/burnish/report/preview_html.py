"""What is trained on, as one HTML file, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from burnish.report.page import page
from burnish.report.preview_console import MARKS, counts_line
from burnish.report.tokens import CUT, PROMPT, TRAINED, UNTRAINED, Passage, Piece, PromptView, Segment, escaped

CLASSES = {PROMPT: "prompt", TRAINED: "trained", UNTRAINED: "untrained", CUT: "cut"}
STYLE = """
.segment { display: grid; grid-template-columns: 8.5rem 1fr; gap: .8rem; border-top: 1px solid var(--line);
  padding: .35rem 0 }
.label { font-variant-numeric: tabular-nums; white-space: nowrap }
.text { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.t { box-shadow: inset 1px 0 var(--line) }
.t:hover { outline: 1px solid }
.s { border: 1px solid; border-radius: 3px; padding: 0 .2em; margin: 0 .1em; font-weight: 600; box-shadow: none }
.trained { color: var(--trained) } .trained .text { text-decoration: underline; text-underline-offset: .25em }
.untrained { color: var(--untrained) } .untrained .text { text-decoration: underline dotted }
.cut { color: var(--cut) } .cut .text { text-decoration: line-through }
@media (max-width: 40rem) { .segment { grid-template-columns: 1fr; gap: 0 } }
"""
LEGEND = (
    "Each token is marked off by a thin line; its id shows when the pointer rests on it. Boxes are special tokens, and "
    "parts of characters. "
    "↵ is a line break, ⇥ a tab; what would be invisible is written as Python writes it."
)


def preview_page(title: str, views: Sequence[PromptView], notes: Sequence[str] = ()) -> str:
    """The page.

    Args:
        title: what is previewed.
        views: the rows.
        notes: lines below the title: what is counted, and rows that cannot be trained on.
    """
    return page(title, f"<p class=note>{legend()}</p>\n{''.join(map(view_section, views))}", notes=notes, style=STYLE)


def legend() -> str:
    """What the marks and lines of `view_section` mean."""
    return f"{_marks()}. {LEGEND}"


def _marks() -> str:
    kinds = (TRAINED, UNTRAINED, CUT)
    return ", ".join(f"<b class={CLASSES[kind]}>{MARKS[kind]} {kind}</b>" for kind in kinds)


def view_section(view: PromptView) -> str:
    """A prompt and its completions, token by token."""
    images = ", with images" if view.has_images else ""
    passages = "".join(map(_passage, (view.prompt, *view.completions)))
    return f"<section>\n<h2>row {view.row_id}{images}</h2>\n{passages}</section>\n"


def _passage(passage: Passage) -> str:
    return f"<h3>{escape(counts_line(passage))}</h3>\n{''.join(map(_segment, passage.segments))}"


def _segment(segment: Segment) -> str:
    label = f"{MARKS[segment.kind]} {segment.kind} <span class=count>{len(segment.ids)}</span>"
    tokens = "".join(map(_piece, segment.pieces))
    kind = CLASSES[segment.kind]
    return f"<div class='segment {kind}'><div class=label>{label}</div><div class=text>{tokens}</div></div>\n"


def _piece(piece: Piece) -> str:
    ids = " ".join(map(str, piece.ids))
    kind = "t s" if piece.is_special else "t"
    return f"<span class='{kind}' title='{ids}'>{escape(escaped(piece.text))}</span>"
