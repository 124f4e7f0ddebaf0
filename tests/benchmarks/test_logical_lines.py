"""What counts as a line of code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from _logical_lines import logical_lines

SOURCE = '''"""A module
of two lines of docstring."""

import math  # counts


@decorated
class Circle:
    "Its docstring."

    unit = """text that is
no docstring"""

    def area(self, r): return (
        math.pi
        # why
        * r * r)


def other():
    """Nothing but a docstring."""
'''


def test_counted_by_hand():
    """import; decorator, class, two lines of text, def; `return (`, three factors, `)`; def: the comment keeps them apart."""
    assert logical_lines(SOURCE) == 12


def test_members_alone():
    assert logical_lines(SOURCE, ["Circle"]) == 10
    assert logical_lines(SOURCE, ["Circle.area"]) == 6
    assert logical_lines(SOURCE, ["Circle", "Circle.area", "other"]) == 11  # nothing counts twice
    with pytest.raises(ValueError, match=r"there is no 'Circle\.perimeter' in the source"):
        logical_lines(SOURCE, ["Circle.perimeter"])


def test_a_line_that_is_too_long_is_several():
    call = f"f({', '.join(f'argument_{number}' for number in range(12))})\n"
    assert len(call) > 100
    assert logical_lines(call) == 14
