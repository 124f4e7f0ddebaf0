import datetime

import pyarrow as pa
import pytest
from datasets import Json, Value

from burnish.data.errors import DataError
from burnish.data.table import Table, check_row


def table_of(values):
    return Table.of(enumerate([{"a": value} for value in values]), place="here")


def columns_of(values):
    return table_of(values).data_set(enumerate([{"a": value} for value in values]))["a"][:]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], Value("int64")),
        ([1, 2.5, None], Value("float64")),
        ([None, "a"], Value("string")),
        ([1, "a"], Json()),
        ([True, 1], Json()),
        (["a", ["a"]], Json()),
        ([{"b": 1}, [1]], Json()),
        ([{"b": 1}, {"b": "1"}], Json()),
        ([[{"b": "x"}], [{"b": [{"c": 1}]}]], Json()),
    ],
)
def test_a_column_has_the_type_of_all_of_its_values(values, kind):
    assert table_of(values).features["a"] == kind
    assert columns_of(values) == values


def test_mappings_have_all_of_their_keys():
    assert columns_of([{"b": 1}, {"c": "x"}]) == [{"b": 1, "c": None}, {"b": None, "c": "x"}]


def test_text_that_looks_like_json_stays_text():
    values = ["5", "true", "[1]", '{"a": 1}', "null", "", 5, None, "天"]
    assert columns_of(values) == values


def test_a_type_that_changes_in_a_later_part():
    """Rows are looked at a thousand at a time; those before the odd one become JSON too."""
    values = [*range(1500), "x", *range(700)]
    table = table_of(values)
    assert table.mixed == {"a"}
    assert columns_of(values) == values
    assert table.schema.field("a").type == pa.string()


def test_only_the_odd_column_changes():
    rows = [{"a": 1, "b": 1}, {"a": "x", "b": 2}]
    table = Table.of(enumerate(rows), place="here")
    assert (table.mixed, table.features["b"]) == ({"a"}, Value("int64"))
    assert table.data_set(enumerate(rows)).to_list() == rows


@pytest.mark.parametrize("before", [["a"], ["a", 5]])
@pytest.mark.parametrize("value", [datetime.date(2020, 1, 2), "\ud800", ["\ud800"]])
def test_what_no_column_holds_is_named(before, value):
    with pytest.raises(DataError, match=rf"here, row {len(before)}, column 'a': .* does not fit into a table"):
        table_of([*before, value])


def test_a_row_is_a_mapping():
    with pytest.raises(DataError, match="there: a row is a dict"):
        check_row([1], "there")
