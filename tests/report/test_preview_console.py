from __future__ import annotations

import io

from rich.console import Console

from burnish.report.preview_console import NUM_FIRST, NUM_LAST, preview_table
from burnish.report.tokens import CUT, PROMPT, TRAINED, UNTRAINED, Passage, Piece, PromptView, Segment

EOS = Piece((2,), "<|im_end|>", is_special=True)


def words(text):
    return tuple(Piece((ord(c),), c) for c in text)


def view(*segments, prompt="q"):
    return PromptView(7, Passage("prompt", (Segment(PROMPT, words(prompt)),)), (Passage("chosen", segments),))


def shown(*views, color=False, **options):
    screen = io.StringIO()
    console = Console(
        file=screen, width=70, force_terminal=color, no_color=not color, color_system="truecolor" if color else None
    )
    console.print(preview_table(views, **options))
    return screen.getvalue()


def test_kinds_are_told_apart_without_colour():
    screen = shown(
        view(Segment(TRAINED, (*words("yes"), EOS)), Segment(UNTRAINED, words("no")), Segment(CUT, words("x")))
    )
    assert "\x1b" not in screen
    lines = [" ".join(line.split()) for line in screen.splitlines()]
    assert "row 7" in lines
    assert "chosen: 4 trained, 2 not trained, 1 cut" in lines
    assert "+ trained 4 yes‹<|im_end|>›" in lines
    assert "- not trained 2 no" in lines
    assert "x cut 1 x" in lines


def test_kinds_have_colours():
    screen = shown(view(Segment(TRAINED, words("yes")), Segment(CUT, words("x"))), color=True)
    assert "\x1b[32m" in screen
    assert "\x1b[9;31m" in screen


def test_outer_spaces_and_line_breaks_are_seen():
    screen = shown(view(Segment(TRAINED, words("  a\nb  \n")), Segment(CUT, words("  "))))
    lines = [" ".join(line.split()) for line in screen.splitlines()]
    assert "+ trained 8 ␣␣a↵" in lines
    assert "b ↵" in lines
    assert "x cut 2 ␣␣" in lines


def test_hostile_text_neither_steers_nor_marks_up():
    hostile = view(Segment(TRAINED, words("\x1b[2J[bold]b[/bold][/]\x07\u202e")))
    screen = shown(hostile)
    assert "\\x1b[2J[bold]b[/bold][/]\\x07\\u202e" in screen
    assert "\x1b" not in screen
    assert "\x07" not in screen
    assert "\x1b[2J" not in shown(hostile, color=True)


def test_long_segments_lose_their_middle_unless_asked():
    letters = "a" * NUM_FIRST + "#" * 100 + "c" * NUM_LAST
    segment = Segment(TRAINED, words(letters))
    short, full = shown(view(segment)), shown(view(segment), is_full=True)
    assert "aaa" in short
    assert "#" not in short
    assert "… 100 tokens, shown by --full …" in " ".join(short.split())
    assert full.count("#") == 100


def test_repeated_special_tokens_stand_once():
    image = Piece((9,), "<image>", is_special=True)
    screen = shown(view(Segment(UNTRAINED, (image,) * 64), Segment(TRAINED, (EOS, EOS))))
    assert "‹<image>›×64" in screen
    assert "‹<|im_end|>›‹<|im_end|>›" in screen


def test_no_tokens_are_said():
    assert "chosen: no tokens" in shown(view())
