"""What texts of models and data sets may do to a terminal: nothing."""

from __future__ import annotations

STEERING = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C)))


def visible(text: str) -> str:
    r"""Text without the characters that steer a terminal or turn its direction; line breaks and tabs stay.

    >>> visible("a\x1b[2Jb\tc\n")
    'a[2Jb\tc\n'
    """
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160 or _steers(c)))


def _steers(character: str) -> bool:
    return character in STEERING or 0xD800 <= ord(character) <= 0xDFFF
