"""One HTML file: no script, no network, readable in light, in dark and without colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from burnish.report.tokens import escaped

STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #666; --trained: #0a6b2c; --untrained: #8a5a00; --cut: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --dim: #aaa; --trained: #6fd08c; --untrained: #e6b450; --cut: #ff8a80 }
}
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem } h3 { font-size: 1rem; margin: 1rem 0 .3rem }
.note, .count { color: var(--dim) }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, body: str, *, notes: Sequence[str] = (), style: str = "") -> str:
    """The page.

    Args:
        title: as it is; shown inert.
        body: HTML.
        notes: lines below the title, as they are; shown inert.
        style: CSS of this kind of page, behind the common one.
    """
    told = f"<pre class=note>{inert(chr(10).join(notes))}</pre>" if notes else ""
    heading = escape(escaped(title))
    return (
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name=viewport content="width=device-width">\n'
        f"<title>{heading}</title>\n<style>{STYLE}{style}</style>\n<h1>{heading}</h1>\n{told}\n{body}</html>\n"
    )


def inert(text: str, *, line_break: str = "\n") -> str:
    """Text that is nothing but text, in HTML and out of it."""
    return escape(escaped(text, line_break=line_break))
