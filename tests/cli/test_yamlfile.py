from __future__ import annotations

import math

import pytest

from burnish.cli.yamlfile import YamlError, parse_value, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E5", 1e5),
        (".5e-3", 0.5e-3),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("010", 10),
        ("1_000", 1000),
        ("0x1f", 31),
        ("true", True),
        ("null", None),
        ("", None),
        ("-.inf", -math.inf),
    ],
)
def test_numbers_and_words_of_yaml_1_2(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize("text", ["no", "on", "yes", "1:30", "2020-01-01", "e5", "1e", "1.5.2", "recipe:dpo", "12abc"])
def test_what_yaml_1_1_would_turn_into_something_else_is_text(text):
    assert parse_value(text) == text


def test_lines_and_every_duplicate_key():
    document = parse_yaml("a: 1\nb:\n  c: 2\n  c: 3\na: 4\nl:\n- 1\n- 2\n")
    assert document.lines[("b", "c")] == 3
    assert document.lines[("l", 1)] == 8
    assert document.duplicates == ((("b", "c"), 4), (("a",), 5))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "line 1"),
        ("a: 1\nb: !!python/object:os.system x", "line 2"),
        ("- a\nb: 1", "line 2"),
        ("&a [*a]", "alias inside"),
        ("a: 1\n---\nb: 2", "document"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text, part):
    with pytest.raises(YamlError, match=part):
        parse_yaml(text)


def test_an_override_may_not_have_a_key_twice():
    with pytest.raises(YamlError, match="'a' stands twice"):
        parse_value("{a: 1, a: 2}")
