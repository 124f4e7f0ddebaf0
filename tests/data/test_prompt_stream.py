"""The cursor over prompts: every prompt once in every epoch, and the same again after a resume."""

from __future__ import annotations

from collections import Counter

import pytest

from burnish.data.prompt_stream import PromptStream, Visit


def rows_of(visits: list[Visit]) -> list[int]:
    return [visit.row for visit in visits]


def test_every_epoch_is_a_permutation_of_its_own():
    stream = PromptStream(7, seed=3)
    epochs = [rows_of(stream.take(7)) for _ in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_that_of_the_seed():
    assert rows_of(PromptStream(20, seed=1).take(20)) == rows_of(PromptStream(20, seed=1).take(20))
    assert rows_of(PromptStream(20, seed=1).take(20)) != rows_of(PromptStream(20, seed=2).take(20))


def test_without_shuffling_rows_come_in_order():
    stream = PromptStream(3, shuffle=False)
    assert [rows_of(stream.take(2)), rows_of(stream.take(2)), rows_of(stream.take(2))] == [[0, 1], [2, 0], [1, 2]]


@pytest.mark.parametrize("count", [1, 3, 5, 7, 11, 20])
def test_a_round_that_reaches_the_end_loses_no_prompt(count):
    """However many a round takes, its prompts are those of the epochs one after the other."""
    whole = rows_of(PromptStream(7, seed=3).take(7 * count))
    stream = PromptStream(7, seed=3)
    assert [row for _ in range(7) for row in rows_of(stream.take(count))] == whole
    assert set(Counter(whole).values()) == {count}


def test_a_visit_tells_its_epoch():
    stream = PromptStream(3, shuffle=False)
    assert stream.take(2) == [(0, 0), (1, 0)]
    assert stream.take(3) == [(2, 0), (0, 1), (1, 1)]


def test_a_round_may_be_larger_than_the_data_set():
    stream = PromptStream(2, seed=0)
    assert Counter(rows_of(stream.take(7))) in ({0: 4, 1: 3}, {0: 3, 1: 4})
    assert stream.epoch == 3


def told(stream: PromptStream, taken: list[int]) -> None:
    """A solve rate that depends on the row: 0, 1/5, ... 4/5."""
    stream.learn({row: row % 5 / 5 for row in taken})


@pytest.mark.parametrize("window", [None, (0.1, 0.5)], ids=["all", "window"])
def test_it_continues_from_every_position(window):
    """Saved after each of 30 takes of three rows, a new stream goes on exactly as the old one did."""
    settings = {"seed": 4, "window": window, "revisit": 3}
    stream, taken, states = PromptStream(10, **settings), [], []
    for _ in range(30):
        states.append(stream.state_dict())
        taken.append(rows_of(stream.take(3)))
        told(stream, taken[-1])
    for position, state in enumerate(states):
        other = PromptStream(10, **settings)
        other.load_state_dict(state)
        for expected in taken[position:]:
            rows = rows_of(other.take(3))
            assert rows == expected
            told(other, rows)
        assert (other.epoch, other.num_left_out) == (stream.epoch, stream.num_left_out)


def test_prompts_outside_the_window_are_visited_in_every_revisit_th_epoch():
    """Rows 0 (never solved) and 3 (always) are outside 0.2 to 0.8; row 4 was not visited yet."""
    stream = PromptStream(5, shuffle=False, window=(0.2, 0.8), revisit=3)
    rows_of(stream.take(4))
    stream.learn({0: 0.0, 1: 0.2, 2: 0.8, 3: 1.0})
    assert rows_of(stream.take(1)) == [4]
    assert rows_of(stream.take(6)) == [1, 2, 4, 1, 2, 4]  # epochs 1 and 2
    assert (stream.epoch, stream.num_left_out) == (2, 4)
    assert rows_of(stream.take(5)) == [0, 1, 2, 3, 4]  # epoch 3 has all
    assert stream.num_left_out == 4


def test_the_latest_solve_rate_counts():
    stream = PromptStream(2, shuffle=False, window=(0.2, 0.8), revisit=100)
    rows_of(stream.take(2))
    stream.learn({0: 0.0, 1: 0.5})
    assert rows_of(stream.take(2)) == [1, 1]
    stream.learn({0: 0.5, 1: 1.0})
    assert rows_of(stream.take(2)) == [0, 0]


def test_it_never_runs_dry():
    """Every prompt is outside the window: only every fourth epoch has any, and a take ends all the same."""
    stream = PromptStream(3, shuffle=False, window=(0.4, 0.6))
    rows_of(stream.take(3))
    stream.learn(dict.fromkeys(range(3), 1.0))
    assert rows_of(stream.take(6)) == [0, 1, 2, 0, 1, 2]
    assert stream.epoch == 8
    assert stream.num_left_out == 18


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_rows": 0}, "num_rows=0"),
        ({"num_rows": 3, "revisit": 0}, "revisit=0"),
        ({"num_rows": 3, "window": (0.5, 0.2)}, r"\(0.5, 0.2\).*0 <= low <= high <= 1"),
        ({"num_rows": 3, "window": (0.5, 2)}, "window of solve rates"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        PromptStream(**settings)
