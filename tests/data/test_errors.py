from burnish.data.errors import BadRow, bad_rows_error, excerpt


def test_excerpt_is_one_short_line_without_escapes():
    assert len(excerpt("x" * 1_000_000)) <= 60
    assert "\n" not in excerpt("a\nb" * 50)
    assert "\x1b" not in excerpt("\x1b]8;;http://x\x07click")
    excerpt("a\ud800").encode()


def test_error_names_the_first_eight_rows_in_twelve_lines():
    bad_rows = [BadRow(row, "chosen", "is empty", "''", "Give text.") for row in range(20)]
    message = str(bad_rows_error(bad_rows, name="train", num_rows=50))
    assert message.startswith("train: 20 of 50 rows")
    assert "row 7," in message
    assert "row 8," not in message
    assert "12 more" in message
    assert len(message.splitlines()) <= 12


def test_excerpt_of_a_value_of_too_many_levels():
    """Python itself cannot show it."""
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert excerpt(deep) == "<list of too many levels to show>"
