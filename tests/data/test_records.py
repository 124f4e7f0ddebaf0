"""A hundred faults are named, row and column; a hundred sound rows raise no alarm."""

import json
import math

import pytest
from datasets import disable_progress_bars
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

from burnish.data.errors import DataError
from burnish.data.records import TokenRules, preference_batch
from burnish.data.sources import load_rows
from burnish.data.tokenize import prepare_preferences
from burnish.data.truncate import TruncationPolicy
from conftest import make_rows, make_tokenizer

disable_progress_bars()
TOKENIZER = make_tokenizer()
RULES = TokenRules(truncation=TruncationPolicy(), prefix=(), end_ids=(2,), code="")
COLUMNS = ("prompt", "chosen", "rejected")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30).filter(str.strip)
FUZZ = settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def turn(role):
    return st.builds(lambda content: {"role": role, "content": content}, TEXT)


@st.composite
def sound_rows(draw):
    """A text or message row, with or without numbers."""
    chosen, rejected = draw(st.lists(TEXT, min_size=2, max_size=2, unique=True))
    row = {"prompt": draw(TEXT), "chosen": chosen, "rejected": rejected}
    if draw(st.booleans()):
        system = draw(st.lists(turn("system"), max_size=1))
        history = draw(st.lists(st.tuples(turn("user"), turn("assistant")), max_size=2))
        row = {
            "prompt": [*system, *(t for pair in history for t in pair), draw(turn("user"))],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
    if draw(st.booleans()):
        row["weight"] = draw(st.floats(0, 10))
    return row


FAULTS = {
    "missing": lambda row, column: None,
    "number": lambda row, column: 5,
    "nan": lambda row, column: math.nan,
    "dict": lambda row, column: {"content": "x"},
    "other form": lambda row, column: [{"role": "user", "content": "x"}] if isinstance(row[column], str) else "x",
    "empty": lambda row, column: _content(row[column], ""),
    "white space": lambda row, column: _content(row[column], " \t\n"),
    "NUL": lambda row, column: _content(row[column], "a\x00b"),
    "surrogate": lambda row, column: _content(row[column], "a\udc00"),
    "content None": lambda row, column: _content(row[column], None),
}


def _content(value, content):
    return content if isinstance(value, str) else [*value[:-1], {**value[-1], "content": content}]


def problems_of(*rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return preference_batch(columns, list(range(40, 40 + len(rows))), tokenizer=TOKENIZER, rules=RULES)["problem"]


def load_and_prepare(rows):
    return prepare_preferences(load_rows(rows), TOKENIZER, truncation=TruncationPolicy())


@seed(0)
@FUZZ
@given(row=sound_rows(), fault=st.sampled_from(sorted(FAULTS)), column=st.sampled_from(COLUMNS))
def test_faults_are_named(row, fault, column):
    """A prompt in another form than its answers is no fault."""
    assume((fault, column) != ("other form", "prompt"))
    before, bad, after = problems_of(row, {**row, column: FAULTS[fault](row, column)}, row)
    assert before == after == ""
    named = json.loads(bad)
    assert (named["row"], named["column"]) == (41, column)


@seed(1)
@FUZZ
@given(row=sound_rows())
def test_sound_rows_raise_no_alarm(row):
    assert problems_of(row) == [""]


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [{"prompt": "Sky?", "chosen": "blue", "rejected": "red"}, make_rows(1)[0]])
def test_faults_are_named_from_the_list_to_the_error(row, fault, column):
    """Whether Arrow refuses the value or the row is read and refused, the error names row and column."""
    if (fault, column) == ("other form", "prompt"):  # no fault, and the two rows fit into one table
        assert len(load_and_prepare([row, {**row, column: FAULTS[fault](row, column)}])[0]) == 2
        return
    with pytest.raises(DataError) as caught:
        load_and_prepare([row, {**row, column: FAULTS[fault](row, column)}])
    assert f"row 1, column {column!r}" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 12
