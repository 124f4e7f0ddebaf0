"""What is trained on, on the terminal: colours, and marks that say the same without them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from burnish.report.tokens import CUT, PROMPT, TRAINED, UNTRAINED, Passage, Piece, PromptView, Segment, escaped

MARKS = {PROMPT: " ", TRAINED: "+", UNTRAINED: "-", CUT: "x"}
STYLES = {PROMPT: "default", TRAINED: "green", UNTRAINED: "yellow", CUT: "red strike"}
LEGEND = "+ trained  - not trained  x cut off  ‹special token›  ↵ line break  ␣ space"
NUM_FIRST, NUM_LAST = 120, 40  # pieces that are shown of a long segment
MIN_REPEATS = 4


def preview_table(views: Sequence[PromptView], *, is_full: bool = False) -> RenderableType:
    """Each row: its prompt, its completions, and the tokens of each kind.

    Args:
        views: the rows.
        is_full: long segments are shown whole; else their middle is left out, and counted.
    """
    parts: list[RenderableType] = [Text(LEGEND, style="dim")]
    for view in views:
        images = ", with images" if view.has_images else ""
        parts.append(Text(f"\nrow {view.row_id}{images}", style="bold"))
        table = Table.grid(padding=(0, 1), expand=True)
        for _ in ("mark", "kind"):
            table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(ratio=1, overflow="fold")
        for passage in (view.prompt, *view.completions):
            _add_passage(table, passage, is_full=is_full)
        parts.append(table)
    return Group(*parts)


def prompts_table(views: Sequence[PromptView], *, is_full: bool = False) -> RenderableType:
    """Prompts without completions, a row each: what they say and their token ids; arguments as in `preview_table`."""
    table = Table(expand=True, show_lines=True)
    for name in ("row", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("prompt", ratio=3, overflow="fold")
    table.add_column("token ids", ratio=2, overflow="fold", style="dim")
    for view in views:
        num_cut = len(view.prompt.ids(CUT))
        tokens = Text(str(len(view.prompt.ids(PROMPT)))).append(f"\n{num_cut} cut" if num_cut else "", STYLES[CUT])
        parts = [_text(segment, is_full=is_full) for segment in view.prompt.segments]
        ids = [*map(str, view.prompt.ids(PROMPT))]
        left_out = len(ids) - NUM_FIRST - NUM_LAST
        if left_out > 0 and not is_full:
            ids = [*ids[:NUM_FIRST], f"… {left_out} ids, shown by --full …", *ids[-NUM_LAST:]]
        table.add_row(str(view.row_id), tokens, Text.assemble(*parts), " ".join(ids))
    return Group(Text("What is cut off is struck out.  ‹special token›  ↵ line break  ␣ space", style="dim"), table)


def counts_line(passage: Passage) -> str:
    """The tokens of each kind.

    >>> counts_line(Passage("chosen", (Segment(TRAINED, (Piece((5, 6), "a"),)),)))
    'chosen: 2 trained'
    """
    counts = ", ".join(f"{count} {kind}" for kind, count in passage.counts.items() if kind != PROMPT)
    tokens = f"{len(passage.ids(PROMPT))} tokens" if passage.ids(PROMPT) else ""
    return f"{passage.name}: {', '.join(filter(None, (tokens, counts))) or 'no tokens'}"


def _add_passage(table: Table, passage: Passage, *, is_full: bool) -> None:
    table.add_row("", "", "", Text(counts_line(passage), style="bold"))
    for segment in passage.segments:
        style = STYLES[segment.kind]
        num_tokens = Text(str(len(segment.ids)), style="dim")
        table.add_row(
            Text(MARKS[segment.kind], style), Text(segment.kind, style), num_tokens, _text(segment, is_full=is_full)
        )


def _text(segment: Segment, *, is_full: bool) -> Text:
    style, shown = STYLES[segment.kind], Text()
    pieces, num_left_out = segment.pieces, 0
    if not is_full and len(pieces) > NUM_FIRST + NUM_LAST:
        num_left_out = sum(len(piece.ids) for piece in pieces[NUM_FIRST:-NUM_LAST])
        pieces = pieces[:NUM_FIRST]
    _append(shown, pieces, style)
    if num_left_out:
        shown.append(f" … {num_left_out} tokens, shown by --full … ", "dim italic")
        _append(shown, segment.pieces[-NUM_LAST:], style)
    return _with_outer_spaces(shown)


def _append(shown: Text, pieces: Sequence[Piece], style: str) -> None:
    """Pieces one after the other; a special token that is repeated stands once, with its number."""
    place = 0
    while place < len(pieces):
        piece, repeats = pieces[place], 1
        while piece.is_special and pieces[place + repeats : place + repeats + 1] == (piece,):
            repeats += 1
        repeats = repeats if repeats >= MIN_REPEATS else 1
        if piece.is_special:
            shown.append(f"‹{escaped(piece.text, line_break='↵')}›", f"bold {style}")
            shown.append(f"×{repeats}" if repeats > 1 else "", f"bold {style}")
        else:
            shown.append(escaped(piece.text), style)
        place += repeats


def _with_outer_spaces(shown: Text) -> Text:
    """Spaces at the ends of a segment decide what is trained, so they are to be seen. No empty line follows it."""
    if shown.plain.endswith("\n"):
        shown.right_crop(1)
    plain = shown.plain
    num_first, num_last = len(plain) - len(plain.lstrip(" ")), len(plain) - len(plain.rstrip(" "))
    if num_first + num_last == 0:
        return shown
    if num_first == len(plain):
        return Text("␣" * num_first, shown.spans[0].style if shown.spans else "")
    middle = shown[num_first : len(plain) - num_last]
    return Text.assemble("␣" * num_first, middle, "␣" * num_last)
