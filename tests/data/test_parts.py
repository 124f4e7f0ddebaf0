from __future__ import annotations

import pytest

from burnish.data.errors import RowProblem
from burnish.data.parts import as_parts, num_images, read_parts, text_of

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_parts_of_text_become_text():
    assert read_parts("prompt", [text("a"), text(""), text(" b")]) == "a b"


def test_parts_around_an_image_stay():
    """Tables fill in the keys that a part does not have."""
    table = [{"type": "image", "text": None}, {"type": "text", "text": "what?"}]
    assert read_parts("prompt", table) == [IMAGE, text("what?")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["a"], "part 0 is str"),
        ([text("a"), {"type": "video"}], "part 1 has an unknown type"),
        ([{"text": "a"}], "unknown type"),
        ([{"type": "text"}], "part 0 has no text"),
        ([{"type": "text", "text": 3}], "part 0 has no text"),
        ([{"type": "image", "url": "a.png"}], "carries its image itself"),
        ([{"type": "image", "text": "a"}], "carries its image itself"),
    ],
)
def test_bad_parts_are_named(content, words):
    with pytest.raises(RowProblem, match=f"turn 2 .*{words}"):
        read_parts("chosen", content, where="turn 2 ")


def test_counts_and_text():
    content = [IMAGE, text("a"), IMAGE, text("b")]
    assert (num_images(content), text_of(content)) == (2, "ab")
    assert (num_images("abc"), text_of("abc")) == (0, "abc")


def test_text_becomes_parts_behind_its_images():
    assert as_parts("a", num_images_first=2) == [IMAGE, IMAGE, text("a")]
    assert as_parts([text("a"), IMAGE]) == [text("a"), IMAGE]
