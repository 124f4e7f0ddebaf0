from __future__ import annotations

import pytest

from burnish.runtime.terminal import visible


@pytest.mark.parametrize(
    ("text", "seen"), [("中文 ok\n\t", "中文 ok\n\t"), ("\x07\x9b\x7f", ""), ("a\rb", "ab"), ("\ud800x", "x")]
)
def test_visible(text, seen):
    assert visible(text) == seen
