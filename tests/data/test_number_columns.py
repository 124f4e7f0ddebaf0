import math

import pytest

from burnish.data.errors import RowProblem
from burnish.data.numbers import read_numbers


def test_numbers_under_both_names():
    row = {"reference_chosen_logps": -1, "ref_rejected_logps": -2.5, "weight": 0, "margin": 3, "score": 1}
    expected = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.5, "weight": 0.0, "margin": 3.0}
    assert read_numbers(row) == expected


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": None}, "weight"),
        ({"margin": "1"}, "margin"),
        ({"margin": True}, "margin"),
        ({"margin": math.inf}, "margin"),
        ({"ref_chosen_logps": math.nan, "ref_rejected_logps": -1.0}, "ref_chosen_logps"),
        ({"ref_chosen_logps": -1.0}, "ref_rejected_logps"),
        ({"ref_rejected_logps": -1.0}, "ref_chosen_logps"),
    ],
)
def test_bad_numbers_are_named(row, column):
    with pytest.raises(RowProblem) as caught:
        read_numbers(row)
    assert caught.value.column == column
