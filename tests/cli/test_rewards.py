from __future__ import annotations

import io

from rich.console import Console

from burnish.cli.rewards import show_trial
from burnish.rewards import Scorer

ROWS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(1, 5)]


def shown(function) -> tuple[bool, str]:
    file = io.StringIO()
    scorer = Scorer(function, isolation="none", on_error="unscored")
    is_sound = show_trial(Console(file=file, width=120), scorer, ROWS)
    return is_sound, file.getvalue()


def test_a_sound_reward():
    is_sound, text = shown("number")
    assert is_sound
    assert "right, boxed" in text
    assert "4/4" in text
    assert "Nothing stands out." in text


def test_a_reward_that_is_none():
    is_sound, text = shown(lambda completions: [0.0] * len(completions))
    assert not is_sound
    assert "! lambda: gives 0 to every answer" in text
