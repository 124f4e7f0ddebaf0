"""What is trained on, as one HTML file: no script, no network, readable in light, in dark and without colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from burnish.report.preview_console import MARKS, counts_line
from burnish.report.tokens import CUT, PROMPT, TRAINED, UNTRAINED, Passage, Piece, PromptView, Segment, escaped

CLASSES = {PROMPT: "prompt", TRAINED: "trained", UNTRAINED: "untrained", CUT: "cut"}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #666; --trained: #0a6b2c; --untrained: #8a5a00; --cut: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --dim: #aaa; --trained: #6fd08c; --untrained: #e6b450; --cut: #ff8a80 }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem } h3 { font-size: 1rem; margin: 1rem 0 .3rem }
.note, .count { color: var(--dim) }
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
pre { white-space: pre-wrap; overflow-wrap: anywhere }
@media (max-width: 40rem) { .segment { grid-template-columns: 1fr; gap: 0 } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
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
    told = f"<pre class=note>{escape(escaped(chr(10).join(notes), line_break=chr(10)))}</pre>" if notes else ""
    heading = escape(escaped(title))
    return (
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name=viewport content="width=device-width">\n'
        f"<title>{heading}</title>\n<style>{STYLE}</style>\n<h1>{heading}</h1>\n{told}\n"
        f"<p class=note>{_marks()}. {LEGEND}</p>\n{''.join(map(_view, views))}</html>\n"
    )


def _marks() -> str:
    kinds = (TRAINED, UNTRAINED, CUT)
    return ", ".join(f"<b class={CLASSES[kind]}>{MARKS[kind]} {kind}</b>" for kind in kinds)


def _view(view: PromptView) -> str:
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
